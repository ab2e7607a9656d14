"""Training on several processes, with torchrec's engine."""
