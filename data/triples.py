"""Training batches of retrieval models: a user, an item of the user's, and an item drawn at random."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.schema import DataError


@dataclass(frozen=True)
class Triples:
    """A batch of B triples.

    Attributes:
        users: the users, int64 [B].
        positives: items of these users, int64 [B].
        negatives: items drawn uniformly from all, int64 [B] (so one may be an item of the user, as in the papers'
            samplers).
        total: the rows of the whole batch, if this is one process's share of it; by default B.
        padding: the number of rows at the end that repeat another row, so that all shares have the same size; they do
            not count.
    """

    users: Tensor
    positives: Tensor
    negatives: Tensor
    total: int = 0
    padding: int = 0

    def __post_init__(self) -> None:
        if not self.total:
            object.__setattr__(self, "total", len(self))

    def __len__(self) -> int:
        return len(self.users)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Triples:
        users, positives, negatives = (
            ids.to(device, non_blocking=non_blocking) for ids in (self.users, self.positives, self.negatives)
        )
        return Triples(users, positives, negatives, self.total, self.padding)

    def share(self, part: int, parts: int) -> Triples:
        """Return one of `parts` consecutive shares of the same size."""
        size = -(-len(self) // parts)
        rows = torch.arange(part * size, (part + 1) * size)
        padding = int((rows >= len(self)).sum())
        rows.clamp_(max=len(self) - 1)
        return Triples(self.users[rows], self.positives[rows], self.negatives[rows], len(self), padding)


def num_batches(edges: Tensor, batch_size: int) -> int:
    """Return the number of batches of an epoch, each of at most `batch_size` pairs."""
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, not {batch_size}")
    return -(-edges.shape[1] // batch_size)


def triples(
    edges: Tensor, num_items: int, batch_size: int, *, seed: int, epoch: int = 0, start_batch: int = 0
) -> Iterator[Triples]:
    """Yield each pair once, in an order that depends only on (seed, epoch); batch sizes differ by one at most.

    Args:
        edges: the pairs, int64 [2, E]: users in the first row, items in the second.
        num_items: the number of items, from which negatives are drawn anew in every epoch.
        start_batch: the number of the first batch to yield; the batches are exactly those of an iteration from 0.
    """
    batches = num_batches(edges, batch_size)
    order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(edges.shape[1]))
    for number, columns in enumerate(order.tensor_split(batches)):
        if number >= start_batch:
            users, positives = edges[:, columns]
            drawn = np.random.default_rng([seed, epoch, number]).integers(num_items, size=len(columns))
            yield Triples(users, positives, torch.from_numpy(drawn))
