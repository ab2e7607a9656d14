"""Studies: measurements other than plain runs, each with its own result files."""
