"""The pairs of users and items that retrieval experiments read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from data.schema import DataError
from data.splits import SPLITS

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS = ("user_id", "item_id", "split")


@dataclass(frozen=True, eq=False)
class Interactions:
    """The pairs of a user and an item, by split, with dense ids: 0 .. n - 1 in the order of the sorted values.

    A pair that occurs more than once counts once, in the earliest of its splits, so that no trained pair is tested.

    Attributes:
        name: the name of the data set.
        values: the value of each id, of all splits, under "user_id" and "item_id".
        pairs: a frame for each split, with columns user_id and item_id (Int64), sorted.
    """

    name: str
    values: Mapping[str, pl.Series]
    pairs: Mapping[str, pl.DataFrame]

    @property
    def num_users(self) -> int:
        return len(self.values["user_id"])

    @property
    def num_items(self) -> int:
        return len(self.values["item_id"])

    def edges(self, split: str = "train") -> Tensor:
        """Return the pairs of a split, int64 [2, N]: users in the first row, items in the second."""
        import torch

        if split not in self.pairs:
            raise DataError(f"{self.name} has no split {split!r}; it has {', '.join(self.pairs)}")
        return torch.from_numpy(self.pairs[split].to_numpy(order="fortran").T.copy())

    def counts(self, table: str) -> Tensor:
        """Return how often each id of "user_id" or "item_id" occurs in the train split: int64 [number of ids]."""
        edges = self.edges("train")
        return edges[COLUMNS.index(table)].bincount(minlength=len(self.values[table]))

    def __repr__(self) -> str:
        pairs = ", ".join(f"{split} {len(rows):,}" for split, rows in self.pairs.items())
        return f"Interactions({self.name}: {self.num_users:,} users, {self.num_items:,} items, {pairs})"


def from_rows(name: str, rows: pl.LazyFrame) -> Interactions:
    """Check rows with COLUMNS and number their ids.

    Raises:
        DataError: a column or an id is missing, ids are neither integers nor strings, or a split is not train, valid or
            test, or holds no pair of its own.
    """
    dtypes = rows.collect_schema()
    for column in COLUMNS:
        if column not in dtypes:
            raise DataError(f"no column {column!r}; there are {', '.join(dtypes)}")
        if column != "split" and not (dtypes[column].is_integer() or dtypes[column] == pl.String):
            raise DataError(f"{column} must hold integers or strings, not {dtypes[column]}")
    split = pl.col("split").cast(pl.String)
    codes = {part: code for code, part in enumerate(SPLITS)}
    number = split.replace_strict(codes, default=None, return_dtype=pl.Int8)
    grouped = rows.group_by("user_id", "item_id").agg(number.min(), bad=split.filter(number.is_null()).len())
    distinct = grouped.sort("user_id", "item_id").collect(engine="streaming")
    if distinct["bad"].sum():
        value = rows.filter(number.is_null()).select(split).head(1).collect().item()
        raise DataError(f"split is {value!r}; it must be one of {', '.join(SPLITS)}")
    for column in COLUMNS[:2]:
        if distinct[column].null_count():
            raise DataError(f"{column} is missing in {distinct[column].null_count()} pairs; drop those rows")
    values = {column: distinct[column].unique().sort() for column in COLUMNS[:2]}
    coded = [values[column].search_sorted(distinct[column]).cast(pl.Int64).alias(column) for column in COLUMNS[:2]]
    frame = pl.DataFrame([*coded, distinct["split"]])
    pairs = {part: frame.filter(split=code).drop("split") for part, code in codes.items()}
    for part, rows_of_part in pairs.items():
        if rows_of_part.is_empty():
            raise DataError(f"the {part} split is empty; give each of {', '.join(SPLITS)} some pairs")
    return Interactions(name, values, pairs)
