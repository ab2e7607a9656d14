"""Studies: measurements that are no plain runs, each with its own result files."""
