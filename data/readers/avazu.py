"""Avazu (Click-Through Rate Prediction): `train.csv`, 40,428,967 rows over 10 days in the order of time.

All columns but `id` and `click` are categories. `hour` (YYMMDDHH) becomes hour of the day, weekday and is_weekend, as
in the Avazu_x4 benchmark of BARS (Zhu et al. 2022, arXiv 2205.09626): 24 features. Values seen fewer than 2 times in
train share the out-of-vocabulary id.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from data.ids import Field
from data.schema import DataError
from data.source import Source
from data.splits import with_split
from data.text import count_rows, scan_delimited, text_file

_PLAIN = (
    *("C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category"),
    *("device_id", "device_ip", "device_model", "device_type", "device_conn_type"),
    *(f"C{number}" for number in range(14, 22)),
)
FEATURES = ("hour", "weekday", "is_weekend", *_PLAIN)
COLUMNS = {"id": pl.String, "click": pl.Int8, "hour": pl.String, **dict.fromkeys(_PLAIN, pl.String)}


def files(folder: Path) -> list[Path]:
    """Return `train.csv`, or `train.gz` as Kaggle publishes it."""
    return [text_file(folder, "train.csv")]


def read(folder: Path, *, split: str = "random", seed: int = 0, ids: str = "vocabulary", min_count: int = 2) -> Source:
    """Read `train.csv` (the published test file has no labels).

    Args:
        split: the split, "random" or "time", 80/10/10.
        ids: "vocabulary" of the train split, or "raw" for hashes of the strings; hour, weekday and is_weekend are ids
            as they are (0..23, 0 = Monday .. 6, 0..1) either way.
        min_count: the least number of occurrences for a vocabulary id.
    """
    if ids not in ("vocabulary", "raw"):
        raise DataError(f"ids must be 'vocabulary' or 'raw', not {ids!r}")
    path = files(folder)[0]
    time = (pl.col("hour") + "00").str.to_datetime("%y%m%d%H%M", strict=False)
    weekday = time.dt.weekday() - 1
    rows = scan_delimited(path, ",", COLUMNS, header=True).with_columns(
        hour=time.dt.hour(), weekday=weekday, is_weekend=weekday >= 5
    )
    rows = rows.with_columns(pl.col("hour", "weekday", "is_weekend").cast(pl.Int32)).drop("id")
    kind = "raw" if ids == "raw" else "train"
    fields = [Field(name, size) for name, size in [("hour", 24), ("weekday", 7), ("is_weekend", 2)]]
    fields += [Field(name, kind, 1 if ids == "raw" else min_count) for name in _PLAIN]
    return Source(with_split(rows, count_rows(path, header=True), split, seed), tuple(fields), label="click")
