"""Controlled tasks, one file each; the file stem is the id of the task."""
