"""Read-only measurements of activations and weights, with their null distributions."""
