"""The schedule of a run whose method changes while it trains."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

import embcomp
from embcomp.schedule import changes_in_training
from experiments.errors import InputError
from experiments.processes import distributed


def schedule_of(
    model: nn.Module, embeddings: nn.Module, optimizer: Optimizer, epochs: int, steps: int
) -> embcomp.Schedule | None:
    """Return the schedule of a run; None if its method does not change.

    Args:
        model: the model, as it is trained.
        embeddings: the module of the tables.
        optimizer: the optimizer of all that is not fused.
        epochs: the most epochs.
        steps: the steps of an epoch.

    Raises:
        InputError: such a method is used in a run of several processes, or does not fit the length of the run.
    """
    if distributed.size() > 1:
        if changes_in_training(embeddings):
            raise InputError(
                "methods that change while they train (HotRows, ClusteredHash, LearnedMask) run in one process"
            )
        return None
    try:
        schedule = embcomp.Schedule(model, epochs=epochs, steps=steps, optimizer=optimizer)
    except ValueError as error:
        raise InputError(f"training: {error}") from error
    return schedule if schedule else None
