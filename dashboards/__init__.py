"""The dashboard: reads run folders and computes nothing heavy."""
