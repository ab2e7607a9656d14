"""Next-item prediction, leave one out: each user's last event is test, the one before it valid, the others train."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from data.schema import DataError
from data.sequences import Sequences
from data.splits import SPLITS

_SORTED = 32  # batches whose windows are sorted by length


@dataclass(frozen=True)
class HistoryBatch:
    """A batch of B histories, in the form that `recsys_models.sequence` takes.

    Attributes:
        history: the items, int64 [B, L], from the oldest event to the latest, then padding (0).
        mask: bool [B, L], True for events.
        users: the users, int64 [B].
    """

    history: Tensor
    mask: Tensor
    users: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> HistoryBatch:
        return HistoryBatch(*(value.to(device, non_blocking=non_blocking) for value in vars(self).values()))


@dataclass(frozen=True, eq=False)
class NextItems:
    """The concatenated events of users, two held out of each. Instances are compared by identity.

    Attributes:
        items: the item of each event, int64 [N], below `num_items`.
        offsets: the begin and end of each user's events, int64 [U + 1].
        values: the id of each item in the source, [num_items].
        content: vectors that describe the items, float32 [num_items, dim]; None if there are none.
    """

    items: np.ndarray
    offsets: np.ndarray
    values: np.ndarray
    content: np.ndarray | None = None

    @classmethod
    def of(cls, sequences: Sequences, core: int = 5) -> NextItems:
        """Select the events of users and items with at least `core` events among each other; number items anew.

        Raises:
            DataError: the core is below 3, which leaves users without an event in each split, or no user belongs to the
                core.
        """
        if core < 3:
            raise DataError(f"core must be 3 or more, for each user to have an event in every split: {core}")
        users, items = sequences.users(), sequences.items
        while len(users):
            often = (np.bincount(users)[users] >= core) & (np.bincount(items)[items] >= core)
            if often.all():
                break
            users, items = users[often], items[often]
        if not len(users):
            raise DataError(f"no user and no item occurs {core} times: choose a smaller core")
        own, numbers = np.unique(items, return_inverse=True)
        starts = np.flatnonzero(np.diff(users, prepend=-1))
        return cls(
            numbers.astype(np.int64),
            np.append(starts, len(users)).astype(np.int64),
            own if sequences.values is None else sequences.values[own],
            None if sequences.content is None else sequences.content[own],
        )

    @property
    def num_items(self) -> int:
        return len(self.values)

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    def ends(self, split: str) -> np.ndarray:
        """Return the ends of the events before the target, in train the end of the split: int64 [U]."""
        return self.offsets[1:] - {"train": 2, "valid": 2, "test": 1}[split]

    def counts(self) -> Tensor:
        """Return how often each item occurs in the train split: int64 [num_items]."""
        return torch.from_numpy(self._counts)

    def targets(self, split: str) -> Tensor:
        """Return the item to predict for each user: int64 [U]."""
        if split not in SPLITS[1:]:
            raise DataError(f"targets are those of {' or '.join(SPLITS[1:])}, not of {split!r}")
        return torch.from_numpy(self.items[self.ends(split)])

    def known(self, split: str) -> Tensor:
        """Return the pairs of user and item before the target, sorted by user: int64 [2, M]."""
        lengths = self.ends(split) - self.offsets[:-1]
        events = np.concatenate([np.arange(*span) for span in zip(self.offsets[:-1], self.ends(split), strict=True)])
        users = np.repeat(np.arange(self.num_users), lengths)
        return torch.from_numpy(np.stack([users, self.items[events]]))

    def histories(self, split: str, users: Tensor, length: int) -> HistoryBatch:
        """Return the latest `length` events of some users before the target."""
        chosen = users.cpu().numpy()
        ends = self.ends(split)[chosen]
        return self._batch(np.maximum(self.offsets[chosen], ends - length), ends, chosen)

    def windows(self, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return starts, ends and users of windows of the train split, cut from the latest event on: int64 [W] each.

        A window holds up to `length + 1` events. Its first event is the last of the window before, so that every event
        but a user's first is predicted once.
        """
        ends = self.ends("train")
        steps = np.maximum(-(-(ends - self.offsets[:-1] - 1) // length), 1)  # windows of each user
        users = np.repeat(np.arange(self.num_users), steps)
        number = np.arange(len(users)) - np.repeat(np.cumsum(steps) - steps, steps)
        last = ends[users] - number * length
        return np.maximum(self.offsets[users], last - length - 1), last, users

    def batches(
        self, length: int, batch_size: int, seed: int, epoch: int, start: int = 0, share: tuple[int, int] = (0, 1)
    ) -> Iterator[HistoryBatch]:
        """Yield all windows, shuffled by (seed, epoch), from batch `start` on; a batch has windows of similar length.

        With `share` (part, parts), only this part of each batch is yielded; a part that gets no window holds no event.
        """
        starts, ends, users = self._windows_of(length)
        draw = np.random.default_rng([seed, epoch])
        order = draw.permutation(len(starts))
        for begin in range(0, len(order), batch_size * _SORTED):
            chunk = order[begin : begin + batch_size * _SORTED]
            order[begin : begin + len(chunk)] = chunk[np.argsort((ends - starts)[chunk], kind="stable")]
        for first in draw.permutation(range(0, len(order), batch_size)).tolist()[start:]:
            chosen = order[first : first + batch_size]
            mine = chosen[share[0] :: share[1]]
            if len(mine):
                yield self._batch(starts[mine], ends[mine], users[mine])
            else:
                yield self._batch(starts[:1], starts[:1], users[:1])

    def num_batches(self, length: int, batch_size: int) -> int:
        """Return the number of batches of an epoch."""
        return -(-len(self._windows_of(length)[0]) // batch_size)

    @cached_property
    def _counts(self) -> np.ndarray:
        train = np.arange(len(self.items)) < np.repeat(self.ends("train"), np.diff(self.offsets))
        return np.bincount(self.items[train], minlength=self.num_items)

    @cached_property
    def _windows(self) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        return {}

    def _windows_of(self, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if length not in self._windows:
            self._windows[length] = self.windows(length)
        return self._windows[length]

    def _batch(self, starts: np.ndarray, ends: np.ndarray, users: np.ndarray) -> HistoryBatch:
        position = starts[:, None] + np.arange(max((ends - starts).max(), 1))
        mask = position < ends[:, None]
        history = np.where(mask, self.items[np.where(mask, position, 0)], 0)
        return HistoryBatch(*map(torch.from_numpy, (history, mask, users)))
