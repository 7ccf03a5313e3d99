"""The dependency-free attention grid: script, style and the encoder of its data."""
