"""The encoding of raw values as ids: vocabularies, and 63-bit hashes for open id spaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from data.schema import DataError, Feature

_MIX = [(np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB))]


@dataclass(frozen=True)
class Field:
    """The encoding of one feature, as its reader declares it.

    Attributes:
        ids: "train" or "all": a vocabulary of the values in the train split or in all rows; "raw": an open id space,
            integers as they are and strings by `hash_strings`; a number n: the values are ids, 0 <= id < n.
        min_count: the least number of occurrences for an id; rarer values share the out-of-vocabulary id.
        multi_hot: True if the column holds lists.
        order: the order in which a vocabulary is numbered: "value", sorted; or "count", by the occurrences in the train
            split, the most frequent value first, and by value where these are equal.

    With ids="train" or min_count > 1, id 0 is the out-of-vocabulary id and the vocabulary starts at 1. A missing value
    is encoded as the empty string.
    """

    name: str
    ids: Literal["train", "all", "raw"] | int = "train"
    min_count: int = 1
    multi_hot: bool = False
    order: Literal["value", "count"] = "value"

    def __post_init__(self) -> None:
        if self.ids not in ("train", "all", "raw") and (type(self.ids) is not int or not 1 <= self.ids < 2**63):
            raise DataError(f"feature {self.name!r}: ids are 'train', 'all', 'raw' or their number, not {self.ids!r}")
        if type(self.min_count) is not int or not 1 <= self.min_count < 2**63:
            raise DataError(f"feature {self.name!r}: min_count must be at least 1, not {self.min_count!r}")
        if self.min_count > 1 and not self.has_vocabulary:
            raise DataError(f"feature {self.name!r}: min_count={self.min_count} needs a vocabulary, not {self.ids!r}")
        if self.order not in ("value", "count"):
            raise DataError(f"feature {self.name!r}: order is 'value' or 'count', not {self.order!r}")
        if self.order == "count" and not self.has_vocabulary:
            raise DataError(f"feature {self.name!r}: order='count' needs a vocabulary, not {self.ids!r}")
        if type(self.multi_hot) is not bool:
            raise DataError(f"feature {self.name!r}: multi_hot must be true or false, not {self.multi_hot!r}")

    @property
    def has_vocabulary(self) -> bool:
        return self.ids in ("train", "all")

    @property
    def out_of_vocabulary(self) -> bool:
        """True if id 0 stands for values outside the vocabulary."""
        return self.ids == "train" or (self.ids == "all" and self.min_count > 1)

    def feature(self, vocabulary: pl.Series | None) -> Feature:
        if self.ids == "raw":
            return Feature(self.name, None, self.multi_hot)
        size = self.ids if vocabulary is None else len(vocabulary) + self.out_of_vocabulary
        assert isinstance(size, int)
        return Feature(self.name, size, self.multi_hot)

    def encode(self, dtype: pl.DataType, vocabulary: pl.Series | None) -> pl.Expr:
        """Return the column of ids, from a column of `dtype`."""
        column = pl.col(self.name)
        if self.multi_hot:
            ids = self._encode(pl.element(), single(dtype), vocabulary)
            return column.fill_null([]).list.drop_nulls().list.eval(ids)
        return self._encode(column, dtype, vocabulary)

    def _encode(self, column: pl.Expr, dtype: pl.DataType, vocabulary: pl.Series | None) -> pl.Expr:
        if vocabulary is not None:
            code = as_strings(column).cast(pl.Enum(vocabulary), strict=False).to_physical().cast(pl.Int32)
            return (code + 1).fill_null(0) if self.out_of_vocabulary else code
        if isinstance(self.ids, int):
            return column.cast(pl.Int32 if self.ids <= 2**31 else pl.Int64)
        return column.cast(pl.Int64) if dtype.is_integer() else hashed(column)


def single(dtype: pl.DataType) -> pl.DataType:
    """Return the type of the values of a column, or of the elements of its lists."""
    return dtype.inner if isinstance(dtype, pl.List) else dtype  # type: ignore[return-value]


def as_strings(column: pl.Expr) -> pl.Expr:
    """Return values as the strings that vocabularies hold."""
    return column.cast(pl.String).fill_null("")


def hashed(column: pl.Expr) -> pl.Expr:
    """Return `hash_strings` of the values as strings."""
    return as_strings(column).map_batches(hash_strings, return_dtype=pl.Int64, is_elementwise=True)


def hash_strings(strings: pl.Series) -> pl.Series:
    """Return 63-bit ids of strings, the same on every machine and with every release.

    This is tabulation hashing: the sum modulo 2^64 of mix(256 * position + byte) over the UTF-8 bytes, then mix of that
    sum, then its upper 63 bits; `mix` is the finaliser of splitmix64. Two given strings collide with probability about
    2^-63.

    >>> hash_strings(pl.Series(["", "a", "b"])).to_list()
    [8147104208329303767, 7909417042028778113, 8489266153844338160]
    """
    data = strings.cast(pl.Binary)
    lengths = data.bin.size().to_numpy().astype(np.int64)
    filled = lengths > 0
    bytes_ = np.frombuffer(b"".join(data.to_list()), np.uint8).astype(np.uint64)
    starts = np.cumsum(lengths) - lengths
    position = np.arange(len(bytes_)) - np.repeat(starts, lengths)
    sums = np.zeros(len(strings), np.uint64)
    if filled.any():
        sums[filled] = np.add.reduceat(_mix(position.astype(np.uint64) * np.uint64(256) + bytes_), starts[filled])
    return pl.Series(strings.name, (_mix(sums) >> np.uint64(1)).astype(np.int64))


def _mix(values: np.ndarray) -> np.ndarray:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in _MIX:
        values = (values ^ (values >> shift)) * factor
    return values ^ (values >> np.uint64(31))
