"""The kinds of runs: what each trains on, its model, its loss and its metrics."""
