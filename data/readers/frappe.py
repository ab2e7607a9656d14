"""Frappe_x1: app usage in context, three files of BARS with 202,027 / 57,722 / 28,860 rows.

The published ids are global, 0 <= id < 5,382, and each field has a range of its own. Here each field is a table: its
ids are the published ones minus the start of its range.

L. Baltrunas et al. Frappe: Understanding the Usage and Perception of Mobile App Recommendations In-The-Wild. arXiv
1505.03014. W. Cheng, Y. Shen, L. Huang. Adaptive Factorization Network. AAAI 2020 (the split).
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import polars as pl

from data.ids import Field
from data.schema import DataError
from data.source import Source
from data.splits import SPLIT, SPLITS
from data.text import scan_delimited, text_file

SIZES = {
    "user": 957,
    "item": 4082,
    "daytime": 7,
    "weekday": 7,
    "isweekend": 2,
    "homework": 3,
    "cost": 2,
    "weather": 9,
    "country": 80,
    "city": 233,
}
STARTS = dict(zip(SIZES, accumulate(SIZES.values(), initial=0), strict=False))


def files(folder: Path) -> list[Path]:
    """Return the three parquet files if they exist, else the published CSV files."""
    if (folder / "train.parquet").is_file():
        return [folder / f"{split}.parquet" for split in SPLITS]
    return [text_file(folder, f"{split}.csv") for split in SPLITS]


def read(folder: Path, *, order: str = "published") -> Source:
    """Read the three files.

    Args:
        order: the order of ids: "published", or "count", by occurrences in train, the most frequent first.
    """
    if order not in ("published", "count"):
        raise DataError(f"order must be 'published' or 'count', not {order!r}")
    frames = []
    for number, path in enumerate(files(folder)):
        if path.suffix == ".parquet":
            rows = pl.scan_parquet(path)
        else:
            rows = scan_delimited(path, ",", {"label": pl.Int8, **dict.fromkeys(SIZES, pl.Int32)}, header=True)
        missing = {"label", *SIZES} - set(rows.collect_schema())
        if missing:
            raise DataError(f"{path} has no column {min(missing)!r}")
        ids = [(pl.col(name).cast(pl.Int32) - start).alias(name) for name, start in STARTS.items()]
        frames.append(rows.select("label", *ids, pl.lit(number, pl.UInt8).alias(SPLIT)))
    by_count = order == "count"
    fields = tuple(Field(name, "all", order="count") if by_count else Field(name, n) for name, n in SIZES.items())
    return Source(pl.concat(frames), fields, label="label", group="user")
