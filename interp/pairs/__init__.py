"""Prompt pairs: clean and corrupted prompts with their answers, read from files, generated or taken from a task."""
