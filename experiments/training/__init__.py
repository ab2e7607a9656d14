"""The training: the loop, optimizers, checkpoints."""
