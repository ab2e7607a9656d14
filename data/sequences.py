"""Behavior sequences: each user's items in the order of time, and two tasks on them.

The first 80 % of each user's events are train, the next 10 % valid, the rest test. An example is an event and the
user's events before it:

- "like": the film that was rated, and whether the rating is above 3; ratings of 3 are only used as history.
- "next": the film that was rated next, label 1, and one that the user never rated, label 0, drawn with the frequency
  of films in the train split.
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
    """The concatenated events of U users. Instances are compared by identity, so that they can be keys of a cache.

    Attributes:
        items: the item of each event, int64 [N], below `num_items`.
        ratings: the rating of each event, int8 [N].
        offsets: the begin and end of each user's events, int64 [U + 1].
        num_items: the number of films.
        categories: the first genre of each film, int64 [num_items]; None if it is unknown.
        values: the id of each item in its source, [num_items]; None if the numbers are the ids.
        content: vectors that describe the items, float32 [num_items, dim]; None if there are none.
    """

    items: np.ndarray
    ratings: np.ndarray
    offsets: np.ndarray
    num_items: int
    categories: np.ndarray | None = None
    values: np.ndarray | None = None
    content: np.ndarray | None = None

    def split(self) -> np.ndarray:
        """Return the split of each event, as a number of `SPLITS`: uint8 [N]."""
        lengths = np.diff(self.offsets)
        position = np.arange(len(self.items)) - np.repeat(self.offsets[:-1], lengths)
        share = position / np.repeat(lengths, lengths)
        return (share >= 0.8).astype(np.uint8) + (share >= 0.9)

    def users(self) -> np.ndarray:
        """Return the user of each event: int64 [N]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


@dataclass(frozen=True)
class Examples:
    """The rows of a task. The history of a row is the `event - offsets[user]` events of `user` before it.

    Attributes:
        users: the users, int64 [n].
        events: the event before which the history ends, int64 [n].
        candidates: the candidates, int64 [n].
        labels: the labels, float32 [n], 0 or 1.
    """

    users: np.ndarray
    events: np.ndarray
    candidates: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.events)


@dataclass(frozen=True)
class SequenceBatch:
    """A batch of B rows, in the form that `recsys_models.BehaviorModel` takes.

    Attributes:
        candidates: the candidates, int64 [B].
        history: the items, int64 [B, L], from the oldest event to the latest, then padding (0).
        mask: bool [B, L], True for events.
        label: the labels, float32 [B].
        users: the users, int64 [B], for grouped metrics.
    """

    candidates: Tensor
    history: Tensor
    mask: Tensor
    label: Tensor
    users: Tensor


def examples(sequences: Sequences, task: str, split: str, seed: int = 0) -> Examples:
    """Return all rows of a task in a split; the seed draws the negatives of "next", different ones in each split.

    Raises:
        DataError: the task or split is unknown, or a user has rated every film.
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
    """Yield rows in order, or shuffled by a seed, each with the latest `length` events before its own."""
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
    """Draw a film for each user who never rated it, with the frequency of films in train."""
    train = sequences.items[sequences.split() == 0]
    own = np.unique(sequences.users() * sequences.num_items + sequences.items)
    items = train[draw.integers(len(train), size=len(users))]
    again = np.arange(len(users))
    for _ in range(1000):
        pairs = users[again] * sequences.num_items + items[again]
        nearest = np.searchsorted(own, pairs).clip(max=len(own) - 1)
        again = again[own[nearest] == pairs]
        if not len(again):
            return items
        items[again] = train[draw.integers(len(train), size=len(again))]
    raise DataError(f"user {users[again[0]]} has rated nearly every film of the train split: no negative can be drawn")
