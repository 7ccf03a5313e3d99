"""The foundation: tasks, hooked models, training, run folders and the `interp` command."""
