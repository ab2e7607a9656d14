"""Runs from a configuration to a result file."""
