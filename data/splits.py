"""The splits of rows into train, valid and test."""

from __future__ import annotations

import numpy as np
import polars as pl

from data.schema import DataError

SPLITS = ("train", "valid", "test")
SPLIT = "__split"  # the column that says it, an index into SPLITS
_ROW = "__row"


def with_split(rows: pl.LazyFrame, num_rows: int, how: str, seed: int) -> pl.LazyFrame:
    """Add a column SPLIT that gives 80 % to train, 10 % to valid and 10 % to test (test takes the rounding).

    Args:
        how: "random", by a permutation that depends on the seed alone, or "time", by the order of the rows.
    """
    if how not in ("random", "time"):
        raise DataError(f"split must be 'random' or 'time', not {how!r}")
    if seed < 0:
        raise DataError(f"seed must be at least 0, not {seed}")
    assignment = np.zeros(num_rows, np.uint8)
    assignment[int(0.8 * num_rows) :] = 1
    assignment[int(0.9 * num_rows) :] = 2
    if how == "random":
        np.random.default_rng(seed).shuffle(assignment)

    def assign(index: pl.Series) -> pl.Series:
        return pl.Series(assignment[index.to_numpy()])

    index = pl.col(_ROW).map_batches(assign, return_dtype=pl.UInt8, is_elementwise=True)
    return rows.with_row_index(_ROW).with_columns(index.alias(SPLIT)).drop(_ROW)
