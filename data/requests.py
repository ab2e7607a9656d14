"""Examples of behavior sequences, asked by requests: some of a user's that follow each other share one history.

A server is asked for many candidates of a user at once, and so is a model here: of each `size` events that follow each
other, the examples form a request, whose history is what the user did before the first of them.
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
    """B requests of up to C candidates, as `recsys_models.BehaviorModel` takes them.

    Attributes:
        candidates: int64 [B, C], then padding (0).
        asked: bool [B, C], True for candidates.
        history: int64 [B, L], from the oldest event to the latest, then padding (0).
        mask: bool [B, L], True for events.
        label: float32 [B, C].
        users: int64 [B].
        before: int64 [B], how many events the user has before the request, also where the history holds fewer.
        total: candidates of the whole batch, of which this may be one process's share.
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
    """Examples by request, with the latest `length` events before each.

    Attributes:
        sequences: of all users.
        rows: the examples, those of a request side by side.
        offsets: int64 [R + 1], where each request begins and ends.
        length: most events of a history.
    """

    sequences: Sequences
    rows: Examples
    offsets: np.ndarray
    length: int

    @classmethod
    def of(cls, sequences: Sequences, rows: Examples, size: int, length: int) -> Requests:
        """Those of each `size` events that follow each other; 1 gives every event its own history."""
        block = (rows.events - sequences.offsets[rows.users]) // size
        begins = np.flatnonzero((np.diff(rows.users, prepend=-1) != 0) | (np.diff(block, prepend=-1) != 0))
        return cls(sequences, rows, np.append(begins, len(rows)), length)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def before(self) -> np.ndarray:
        """How many events the user has before each request: int64 [R]."""
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
        """All requests in order, or shuffled by (seed, epoch), from batch `start` on.

        With `share` (part, parts) of each batch only this part; one for which nothing is left asks for no candidate.

        Shuffled batches hold requests of similar length, which is several times less padding: requests are drawn,
        sorted within 32 batches, and the batches drawn again.
        """
        order = np.arange(len(self))
        places = range(0, len(self), batch_size)
        if seed is not None:
            draw = np.random.default_rng([seed, epoch])
            order, before = draw.permutation(order), np.minimum(self.before, self.length)
            for begin in range(0, len(order), batch_size * _WINDOW):
                part = order[begin : begin + batch_size * _WINDOW]
                order[begin : begin + len(part)] = part[np.argsort(before[part], kind="stable")]
            places = draw.permutation(places).tolist()
        for place in places[start:]:
            yield self.batch(order[place : place + batch_size], share)

    def batch(self, chosen: np.ndarray, share: tuple[int, int] = (0, 1)) -> RequestBatch:
        """A share of the requests of these numbers, int64 [B]; padded to the longest of them."""
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
        place = np.arange(max(held.max(initial=0), 1))
        mask = place < held[:, None]
        history = self.sequences.items[np.where(mask, (ends - held)[:, None] + place, 0)]
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
