"""Intervene on models: patching, detectors, reports."""
