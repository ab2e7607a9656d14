"""The methods that change in training: owners of `HotRows`, clusters of `ClusteredHash`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

import embcomp
from embcomp.holders import holders
from embcomp.methods.clustered_hash import ClusteredEncoder
from embcomp.methods.hot_rows import OwnersEncoder
from embcomp.nn.table import CompressedTable
from experiments.errors import InputError
from experiments.processes import distributed

UNTIL = 0.75
"""The share of the epochs after which tables are clustered, as in the paper of `ClusteredHash`."""


class Adapting:
    """The changes of a model's tables between its steps and epochs; none for most methods.

    Args:
        embeddings: the module of the tables.
        optimizers: the optimizers of the trainer; the first trains all that is not fused.

    Attributes:
        trackers: the trackers of `HotRows`, which a checkpoint holds as parts.

    Raises:
        InputError: such a method is used in a run of several processes.
    """

    def __init__(self, embeddings: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self.trackers: dict[str, embcomp.HotTracker] = {}
        self._clustered: list[tuple[nn.Module, str | None]] = []
        self._optimizer = optimizers[0]
        for holder in holders(embeddings):
            for name, held in holder.tables.items():
                encoder = None if held.plan is None else held.plan.encoder
                table = None if isinstance(holder.module, CompressedTable) else name
                if isinstance(encoder, OwnersEncoder):
                    tracker = embcomp.HotTracker(holder.module, table=table, optimizer=self._optimizer)
                    self.trackers[f"owners_{len(self.trackers)}"] = tracker
                elif isinstance(encoder, ClusteredEncoder):
                    self._clustered.append((holder.module, table))
        if distributed.size() > 1 and (self.trackers or self._clustered):
            raise InputError("HotRows and ClusteredHash change while they train: run them in one process")

    def after_step(self) -> None:
        """Let rows move to other owners, every few steps."""
        for tracker in self.trackers.values():
            tracker.step()

    def after_epoch(self, done: int, epochs: int) -> None:
        """Cluster tables again, in the first part of the training."""
        if done <= UNTIL * epochs:
            for module, table in self._clustered:
                embcomp.recluster_(module, table=table, optimizer=self._optimizer)
