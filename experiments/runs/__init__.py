"""The runs, from a configuration to a result file."""
