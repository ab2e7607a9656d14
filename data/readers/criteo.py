"""Criteo Kaggle (Display Advertising Challenge): `train.txt`, 45,840,617 rows over 7 days in the order of time.

Each line holds, between tabs, the label, 13 integers and 26 categories of 8 hexadecimal digits; any of them but the
label may be missing. Integers become log(1 + max(x, 0)), missing ones 0, as in DLRM (Naumov et al. 2019, arXiv
1906.00091). A missing category is a category of its own. Values seen fewer than 10 times in train share the
out-of-vocabulary id.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from data.ids import Field
from data.schema import DataError
from data.source import Source
from data.splits import with_split
from data.text import count_rows, scan_delimited, text_file

DENSE = tuple(f"I{i}" for i in range(1, 14))
FEATURES = tuple(f"C{i}" for i in range(1, 27))
COLUMNS = {"label": pl.Int8, **dict.fromkeys(DENSE, pl.Int64), **dict.fromkeys(FEATURES, pl.String)}


def files(folder: Path) -> list[Path]:
    return [text_file(folder, "train.txt")]


def read(folder: Path, *, split: str = "random", seed: int = 0, ids: str = "vocabulary", min_count: int = 10) -> Source:
    """Read `train.txt` (the published test file has no labels).

    Args:
        split: the split, "random" or "time", 80/10/10.
        ids: "vocabulary" of the train split, or "raw" for an open id space: the hexadecimal digits as a number, 2^32
            for a missing category.
        min_count: the least number of occurrences for a vocabulary id.
    """
    path = files(folder)[0]
    rows = scan_delimited(path, "\t", COLUMNS).with_columns(
        pl.col(name).cast(pl.Float32).clip(lower_bound=0).log1p().fill_null(0) for name in DENSE
    )
    if ids == "raw":
        missing = pl.lit(2**32, pl.Int64)
        rows = rows.with_columns(
            pl.when(pl.col(name) == "").then(missing).otherwise(_number(pl.col(name))).alias(name) for name in FEATURES
        )
    elif ids != "vocabulary":
        raise DataError(f"ids must be 'vocabulary' or 'raw', not {ids!r}")
    kind = "raw" if ids == "raw" else "train"
    fields = tuple(Field(name, kind, 1 if ids == "raw" else min_count) for name in FEATURES)
    return Source(with_split(rows, count_rows(path), split, seed), fields, label="label", dense=DENSE)


def _number(digits: pl.Expr) -> pl.Expr:
    return digits.str.to_integer(base=16, strict=False, dtype=pl.Int64)
