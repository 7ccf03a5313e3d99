"""Gradients of a metric along the edges and nodes of a decoder, as `circuits.attribution` scores them."""
