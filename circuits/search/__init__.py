"""Ways to rank the edges of a model, one file each; the folder is the registry."""
