"""Training on several processes, by torchrec's own engine."""
