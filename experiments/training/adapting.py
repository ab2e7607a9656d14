"""The schedule of a run whose method changes while it trains."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import embcomp
from embcomp.schedule import changes_in_training
from experiments.errors import InputError
from experiments.processes import distributed
from experiments.tasks.kind import Task

HELD_OUT = 64
"""The batches of held-out data by which a search judges."""


def schedule_of(
    task: Task, model: nn.Module, embeddings: nn.Module, optimizer: Optimizer, device: torch.device
) -> embcomp.Schedule | None:
    """Return the schedule of a run; None if its method does not change.

    Args:
        task: the task of the run.
        model: the model, as it is trained.
        embeddings: the module of the tables.
        optimizer: the optimizer of all that is not fused.
        device: the device of the model.

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
        schedule = embcomp.Schedule(
            model,
            epochs=task.run.training.epochs,
            steps=max(1, task.steps),
            optimizer=optimizer,
            validate=held_out_loss(task, model, device),
        )
    except ValueError as error:
        raise InputError(f"training: {error}") from error
    return schedule if schedule else None


def held_out_loss(task: Task, model: nn.Module, device: torch.device) -> Callable[[int], Tensor]:
    """Return the loss of a model on held-out batches as a function of their number, which goes around.

    The batches are those of the task, never of the test split; they are read when the first one is asked for.
    """

    @cache
    def batches() -> list[Any]:
        return [batch.to(device) for batch in task.held_out(HELD_OUT, task.run.training.batch_size)]

    def loss(number: int) -> Tensor:
        return task.loss(model, batches()[number % len(batches())])

    return loss
