"""The look-ups of the ids of a table in training, which decide what shared rows and ranks lose."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TRAINED = 5.0
"""The look-ups of a value in training, from which on sharing costs in full, and less with their square.

With fewer, own rows overfit: on Globo half of the users have 14 look-ups or fewer for 16 values, and a tenth of the
rows loses nothing."""

MEASURED = 0.5
"""The collisions where the losses of sharing were measured, beside those of ids that are read equally often.

They are .45 to .65 for the tables of MovieLens-1M and Frappe at a quarter and a tenth of the rows."""

PER_OCTAVE = 2
"""The groups of ids for each doubling of their counts."""


@dataclass(frozen=True)
class Reads:
    """The look-ups of a table in training.

    Attributes:
        median: the median number of look-ups of an id.
        share: the share of the ids that are read at least once.
        ids: the number of ids; 0 if the counts are unknown.
        lookups: the number of look-ups.
        groups: the share of the look-ups of ids that are read about equally often, and the look-ups of each of these.
    """

    median: float
    share: float = 1.0
    ids: int = 0
    lookups: float = 0.0
    groups: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(cls, counts: Tensor) -> "Reads":
        """Return the look-ups that the counts [num_embeddings] of a table tell.

        >>> reads = Reads.of(torch.tensor([0, 4, 4, 4, 84]))
        >>> reads.groups  # a share of the look-ups, and the look-ups of an id
        ((0.125, 4.0), (0.875, 84.0))
        """
        read = counts[counts > 0].double()
        octave = (PER_OCTAVE * read.log2()).round().long()
        each = torch.zeros(int(octave.max()) + 1, dtype=torch.float64).index_add_(0, octave, read)
        number = torch.bincount(octave, minlength=len(each))
        groups = [(float(sum_ / read.sum()), float(sum_ / n)) for sum_, n in zip(each, number, strict=True) if n > 0]
        ids, lookups = counts.numel(), float(read.sum())
        return cls(float(counts.median()), len(read) / ids, ids, lookups, tuple(groups))

    def collisions(self, share: float, width: int) -> float:
        """Return how much the ids disturb each other if they share rows, by which `rules.SPREAD` is multiplied.

        An id with p of the look-ups adds p ((p rows)^-1/2 - 1), or nothing if it is read more often than the mean row,
        and less if it is read too rarely for a row of its own to be learned (`TRAINED`). The sum is divided by
        `MEASURED`. Ids whose counts are unknown are taken to be like those of the data of that constant, for which it
        is about share^-1/2 - 1.

        Args:
            share: the number of rows, divided by the number of ids; from 1 on there are none.
            width: the width of the vectors.
        """
        if share >= 1:
            return 0.0
        if not self.groups:
            return share**-0.5 - 1
        found = 0.0
        for part, count in self.groups:
            learned = min(1.0, count / width / TRAINED) ** 2
            own = count / self.lookups * share * self.ids  # the id's look-ups, divided by those of the mean row
            found += part * learned * max(0.0, own**-0.5 - 1)
        return found / MEASURED


OFTEN = Reads(math.inf)
"""The look-ups of a table whose counts are unknown."""
