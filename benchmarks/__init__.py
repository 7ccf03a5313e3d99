"""Correctness-gated measurements; never part of the test suite."""
