"""Examples of behavior sequences, grouped into requests: consecutive examples of a user share one history.

A server scores many candidates of a user at once, and so does a model here: the examples of `size` consecutive events
form a request. Its history is the user's events before the first of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from data.sequences import Examples, Sequences

_WINDOW = 32  # batches whose requests are sorted by length


@dataclass(frozen=True)
class RequestBatch:
    """A batch of B requests with up to C candidates each, in the form that `recsys_models.BehaviorModel` takes.

    Attributes:
        candidates: the candidates, int64 [B, C], then padding (0).
        asked: bool [B, C], True for candidates.
        history: the items, int64 [B, L], from the oldest event to the latest, then padding (0).
        mask: bool [B, L], True for events.
        label: the labels, float32 [B, C].
        users: the users, int64 [B].
        before: the number of events of the user before the request, int64 [B], even if the history holds fewer.
        total: the candidates of the whole batch, if this is one process's share of it.
    """

    candidates: Tensor
    asked: Tensor
    history: Tensor
    mask: Tensor
    label: Tensor
    users: Tensor
    before: Tensor
    total: int

    def to(self, device: torch.device, non_blocking: bool = False) -> RequestBatch:
        moved = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Requests:
    """The examples by request, with the latest `length` events before each.

    Attributes:
        sequences: the sequences of all users.
        rows: the examples; those of a request are consecutive.
        offsets: the begin and end of each request, int64 [R + 1].
        length: the most events of a history.
    """

    sequences: Sequences
    rows: Examples
    offsets: np.ndarray
    length: int

    @classmethod
    def of(cls, sequences: Sequences, rows: Examples, size: int, length: int) -> Requests:
        """Group the examples of each `size` consecutive events; 1 gives every event its own history."""
        block = (rows.events - sequences.offsets[rows.users]) // size
        begins = np.flatnonzero((np.diff(rows.users, prepend=-1) != 0) | (np.diff(block, prepend=-1) != 0))
        return cls(sequences, rows, np.append(begins, len(rows)), length)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def before(self) -> np.ndarray:
        """The number of events that the user has before each request: int64 [R]."""
        first = self.offsets[:-1]
        return self.rows.events[first] - self.sequences.offsets[self.rows.users[first]]

    def batches(
        self,
        batch_size: int,
        seed: int | None = None,
        epoch: int = 0,
        start: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[RequestBatch]:
        """Yield all requests in order, or shuffled by (seed, epoch), from batch `start` on.

        With `share` (part, parts), only this part of each batch is yielded; a part that gets no request has no
        candidate.

        Shuffled batches hold requests of similar length, with several times less padding: requests are permuted, sorted
        by length within 32 batches, and the batches are permuted.
        """
        order = np.arange(len(self))
        places = range(0, len(self), batch_size)
        if seed is not None:
            draw = np.random.default_rng([seed, epoch])
            order, before = draw.permutation(order), np.minimum(self.before, self.length)
            for begin in range(0, len(order), batch_size * _WINDOW):
                chunk = order[begin : begin + batch_size * _WINDOW]
                order[begin : begin + len(chunk)] = chunk[np.argsort(before[chunk], kind="stable")]
            places = draw.permutation(places).tolist()
        for first in places[start:]:
            yield self.batch(order[first : first + batch_size], share)

    def batch(self, chosen: np.ndarray, share: tuple[int, int] = (0, 1)) -> RequestBatch:
        """Make a share of the requests of these numbers, int64 [B]; padded to the longest of them."""
        sizes = np.diff(self.offsets)[chosen]
        total = int(sizes.sum())
        mine = np.array_split(np.arange(len(chosen)), share[1])[share[0]]
        if len(mine):
            chosen, sizes = chosen[mine], sizes[mine]
        else:
            chosen, sizes = chosen[:1], np.zeros_like(sizes[:1])
        first = self.offsets[chosen]
        column = np.arange(max(sizes.max(initial=0), 1))
        asked = column < sizes[:, None]
        row = np.where(asked, first[:, None] + column, 0)
        users, ends = self.rows.users[first], self.rows.events[first]
        before = ends - self.sequences.offsets[users]
        held = np.minimum(before, self.length)
        position = np.arange(max(held.max(initial=0), 1))
        mask = position < held[:, None]
        history = self.sequences.items[np.where(mask, (ends - held)[:, None] + position, 0)]
        return RequestBatch(
            candidates=torch.from_numpy(np.where(asked, self.rows.candidates[row], 0)),
            asked=torch.from_numpy(asked),
            history=torch.from_numpy(np.where(mask, history, 0)),
            mask=torch.from_numpy(mask),
            label=torch.from_numpy(np.where(asked, self.rows.labels[row], 0).astype(np.float32)),
            users=torch.from_numpy(users),
            before=torch.from_numpy(before),
            total=total,
        )
