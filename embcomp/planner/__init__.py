"""The planner: which tables are worth how many bytes."""
