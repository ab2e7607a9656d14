"""Behavior sequences: each user's items in the order of time, and two tasks on them.

Of each user's events the first 80 % are train, the next 10 % valid, the rest test. An example is an event and all that
the user did before it:

- "like": the film that was rated then, and whether the rating is above 3; ratings of 3 are history alone.
- "next": the film that came next, labelled 1, and beside it one that the user never rated, labelled 0, drawn as often
  as films occur in the train split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.schema import DataError
from data.splits import SPLITS

TASKS = ("like", "next")


@dataclass(frozen=True, eq=False)
class Sequences:
    """The events of U users, end to end. Compared by identity, so that they may be keys of a cache.

    Attributes:
        items: int64 [N], below `num_items`.
        ratings: int8 [N].
        offsets: int64 [U + 1], where each user begins and ends.
        num_items: how many films there are.
        categories: int64 [num_items], the first genre of each film; None where it is not known.
        values: the id of each item in its source [num_items]; None where the numbers are the ids.
        content: float32 [num_items, dim], vectors of what the items are about; None where there are none.
    """

    items: np.ndarray
    ratings: np.ndarray
    offsets: np.ndarray
    num_items: int
    categories: np.ndarray | None = None
    values: np.ndarray | None = None
    content: np.ndarray | None = None

    def split(self) -> np.ndarray:
        """Which of `SPLITS` each event belongs to: uint8 [N]."""
        lengths = np.diff(self.offsets)
        place = np.arange(len(self.items)) - np.repeat(self.offsets[:-1], lengths)
        share = place / np.repeat(lengths, lengths)
        return (share >= 0.8).astype(np.uint8) + (share >= 0.9)

    def users(self) -> np.ndarray:
        """The user of each event: int64 [N]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


@dataclass(frozen=True)
class Examples:
    """Rows of a task: what is asked after `event - offsets[user]` events of `user`.

    Attributes:
        users: int64 [n].
        events: int64 [n], the event whose past is the history.
        candidates: int64 [n].
        labels: float32 [n], 0 or 1.
    """

    users: np.ndarray
    events: np.ndarray
    candidates: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.events)


@dataclass(frozen=True)
class SequenceBatch:
    """B rows as `recsys_models.BehaviorModel` takes them.

    Attributes:
        candidates: int64 [B].
        history: int64 [B, L], from the oldest event to the latest, then padding (0).
        mask: bool [B, L], True for events.
        label: float32 [B].
        users: int64 [B], for grouped metrics.
    """

    candidates: Tensor
    history: Tensor
    mask: Tensor
    label: Tensor
    users: Tensor


def examples(sequences: Sequences, task: str, split: str, seed: int = 0) -> Examples:
    """All rows of a task in a split; the seed draws the negatives of "next", others in each split.

    Raises:
        DataError: an unknown task or split, or a user who has rated every film.
    """
    if task not in TASKS or split not in SPLITS:
        raise DataError(f"task must be one of {', '.join(TASKS)} and split one of {', '.join(SPLITS)}: {task}, {split}")
    chosen = sequences.split() == SPLITS.index(split)
    if task == "like":
        events = np.flatnonzero(chosen & (sequences.ratings != 3))
        labels = sequences.ratings[events] > 3
        return Examples(sequences.users()[events], events, sequences.items[events], labels.astype(np.float32))
    events = np.flatnonzero(chosen)
    users = sequences.users()[events]
    negatives = _negatives(sequences, users, np.random.default_rng([seed, SPLITS.index(split)]))
    candidates = np.stack((sequences.items[events], negatives), 1).reshape(-1)
    labels = np.tile(np.array([1, 0], np.float32), len(events))
    return Examples(np.repeat(users, 2), np.repeat(events, 2), candidates, labels)


def batches(
    sequences: Sequences, rows: Examples, batch_size: int, length: int, seed: int | None = None
) -> Iterator[SequenceBatch]:
    """Rows in order, or shuffled by a seed, each with the latest `length` events before its own."""
    order = np.arange(len(rows)) if seed is None else np.random.default_rng(seed).permutation(len(rows))
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        ends, begins = rows.events[some], sequences.offsets[rows.users[some]]
        begins = np.maximum(begins, ends - length)
        places = begins[:, None] + np.arange(length)
        mask = places < ends[:, None]
        history = np.where(mask, sequences.items[np.where(mask, places, 0)], 0)
        arrays = rows.candidates[some], history, mask, rows.labels[some], rows.users[some]
        yield SequenceBatch(*map(torch.from_numpy, arrays))


def _negatives(sequences: Sequences, users: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A film for each user who never rated it, as often as films occur in train."""
    train = sequences.items[sequences.split() == 0]
    own = np.unique(sequences.users() * sequences.num_items + sequences.items)
    items = train[draw.integers(len(train), size=len(users))]
    again = np.arange(len(users))
    for _ in range(1000):
        pairs = users[again] * sequences.num_items + items[again]
        place = np.searchsorted(own, pairs).clip(max=len(own) - 1)
        again = again[own[place] == pairs]
        if not len(again):
            return items
        items[again] = train[draw.integers(len(train), size=len(again))]
    raise DataError(f"user {users[again[0]]} has rated nearly every film of the train split: no negative can be drawn")
