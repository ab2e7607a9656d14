"""The kinds of runs, each with its data, model, loss and metrics."""
