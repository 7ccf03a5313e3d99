"""Detectors of circuit components, one file each; the file stem is the id of the detector."""
