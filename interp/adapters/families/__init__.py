"""Architectures of Hugging Face: which tensors each has, and the decoder that they make."""
