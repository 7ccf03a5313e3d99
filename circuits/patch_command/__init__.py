"""The command `interp patch`."""
