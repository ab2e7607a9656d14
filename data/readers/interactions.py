"""The readers of pairs of a user and an item: Gowalla, Beauty, your own parquet files, synthetic ones.

A parquet file has the columns `user_id` and `item_id` (integers or strings) and `split` (train, valid or test). Gowalla
and Beauty have this form, with their published splits.

D. Liang et al. Modeling User Exposure in Recommendation. WWW 2016 (Gowalla; split: X. He et al. LightGCN. SIGIR 2020).
J. McAuley et al. Image-based Recommendations on Styles and Substitutes. SIGIR 2015 (Beauty).
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from data.interactions import COLUMNS
from data.readers.synthetic import Config, generate
from data.splits import SPLITS, with_split
from embcomp.columns import parquet_files, scan


def files(folder: Path) -> list[Path]:
    """Return `interactions.parquet` of a folder (a file or a folder), else all files of the folder, or the one file."""
    named = folder / "interactions.parquet"
    if named.exists():
        return parquet_files(named)
    if folder.is_file() or "*" in folder.name or any(folder.rglob("*.parquet")):
        return parquet_files(folder)
    return [folder if folder.suffix == ".parquet" else named]


def read(folder: Path) -> pl.LazyFrame:
    return scan(files(folder), COLUMNS)


def synthetic(**config: float) -> pl.LazyFrame:
    """Generate the clicked pairs of `synthetic`, split at random, with its communities of users and items."""
    settings = Config(**config)  # type: ignore[arg-type]
    rows = generate(settings).rows.filter(pl.col("label") == 1).select(user_id="user", item_id="item").unique()
    rows = with_split(rows.sort("user_id", "item_id").lazy(), len(rows), "random", settings.seed)
    return rows.select("user_id", "item_id", split=pl.lit(pl.Series(SPLITS)).gather(pl.col("__split")))
