"""The counts of values and labels of a streamed log, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

_HASHES = 1 << 64
# Columns beside those that users name.
ROWS, POSITIVES, _ORDER = "\0rows", "\0positives", "\0order"
_ODD = 0x9E3779B97F4A7C15


class ValueCounts:
    """The rows and positive labels of each value of one feature, or of each pair of values of two, by their hashes.

    Above a bound only values whose hash lies in the lowest half, quarter, ... are counted further: a random share of
    the values, each counted in full.

    Attributes:
        keys: the names of the features.
        share: the share of the values that are counted.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = tuple(keys)
        self.share = 1.0
        self._parts: list[pl.DataFrame] = []

    def add(self, rows: pl.DataFrame) -> None:
        """Count rows: columns of hashes, uint64, and POSITIVES, the labels, int64."""
        import polars as pl

        kept = self._kept(rows.select(*self.keys, POSITIVES))
        counted = kept.group_by(self.keys).agg(pl.len().cast(pl.Int64).alias(ROWS), pl.col(POSITIVES).sum())
        self._parts.append(counted)
        # Merging when as much is new as is known costs each value O(1) merges on average.
        if 2 * self._parts[0].height < len(self):
            self.merged()

    def merged(self) -> pl.DataFrame:
        """Return all counts added up: the keys, ROWS and POSITIVES, int64, in no order."""
        import polars as pl

        if len(self._parts) > 1:
            self._parts = [pl.concat(self._parts).group_by(self.keys).agg(pl.col(ROWS, POSITIVES).sum())]
        return self._parts[0]

    def result(self) -> pl.DataFrame:
        """Return all counts, as `merged`, by ascending keys: sums over them are the same in every run."""
        return self.merged().sort(self.keys)

    def halve(self) -> None:
        """Leave out half of the values from now on, and also from the counts so far."""
        self.share /= 2
        self._parts = [self._kept(self.merged())]

    def __len__(self) -> int:
        """Return the number of counts that are held; parts that are not merged yet count separately."""
        return sum(part.height for part in self._parts)

    def _kept(self, rows: pl.DataFrame) -> pl.DataFrame:
        import polars as pl

        hashes = pl.col(self.keys[0])
        for other in self.keys[1:]:
            hashes = hashes * pl.lit(_ODD, pl.UInt64) + pl.col(other)
        return _lowest(rows, hashes, self.share)


def bound(counts: Sequence[ValueCounts], most: int) -> None:
    """Keep at most so many counts: halve the largest until they fit."""
    while sum(map(len, counts)) > most:
        largest = max(counts, key=len)
        held = len(largest)
        if len(largest.merged()) == held:
            largest.halve()


class RowSample:
    """A uniform random sample of rows, independent of the batches in which they arrive."""

    def __init__(self, most: int, seed: int) -> None:
        self._most, self._seed, self._share, self._seen = most, seed, 1.0, 0
        self._rows: list[pl.DataFrame] = []

    def add(self, rows: pl.DataFrame) -> None:
        """Add the next rows."""
        import polars as pl

        order = pl.int_range(self._seen, self._seen + rows.height, dtype=pl.UInt64).hash(self._seed)
        self._seen += rows.height
        self._rows.append(_lowest(rows.with_columns(order.alias(_ORDER)), pl.col(_ORDER), self._share))
        while sum(block.height for block in self._rows) > 2 * self._most:
            self._share /= 2
            self._rows = [_lowest(block, pl.col(_ORDER), self._share) for block in self._rows]

    def result(self) -> pl.DataFrame:
        """Return the rows, in a random order."""
        import polars as pl

        return pl.concat(self._rows).sort(_ORDER).head(self._most).drop(_ORDER)


def _lowest(rows: pl.DataFrame, hashes: pl.Expr, share: float) -> pl.DataFrame:
    """The rows whose hash is in the lowest share of all hashes."""
    import polars as pl

    return rows if share == 1 else rows.filter(hashes < pl.lit(int(_HASHES * share), pl.UInt64))
