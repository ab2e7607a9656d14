"""Reads behavior sequences: those of MovieLens-1M, or synthetic ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from data.readers import ml_1m
from data.readers.synthetic import Config, generate
from data.sequences import Sequences


def files(folder: Path) -> list[Path]:
    """Ratings and users, and what tells the genres where it is there."""
    genres = [folder / "items.parquet", folder / "movies.dat"]
    return [*ml_1m.files(folder), *[path for path in genres if path.is_file()][:1]]


def read(folder: Path) -> Sequences:
    """The sequences of a folder of MovieLens-1M; films and users are numbered in the order of their ids."""
    rows = ml_1m.read_ratings(ml_1m.files(folder)[0]).sort("user_id", "position", "item_id").collect()
    films, items = np.unique(rows["item_id"].to_numpy(), return_inverse=True)
    _, starts = np.unique(rows["user_id"].to_numpy(), return_index=True)
    offsets = np.append(starts, len(rows)).astype(np.int64)
    genres = ml_1m.read_genres(folder)
    categories = None
    if genres is not None:
        first = pl.DataFrame({"item_id": films}).join(genres, on="item_id", how="left", maintain_order="left")
        categories = np.unique(first["genre"].fill_null("").to_numpy(), return_inverse=True)[1].astype(np.int64)
    return Sequences(items.astype(np.int64), rows["rating"].to_numpy(), offsets, len(films), categories, films)


def synthetic(**config: float) -> Sequences:
    """Clicks of `synthetic` as ratings of 5, the other rows as ratings of 1; communities are the categories."""
    settings = Config(**config)  # type: ignore[arg-type]
    made = generate(settings)
    rows = made.rows.sort("user", "time").select("user", "item", rating=4 * pl.col("label").cast(pl.Int8) + 1)
    _, starts = np.unique(rows["user"].to_numpy(), return_index=True)
    offsets = np.append(starts, len(rows)).astype(np.int64)
    communities = np.asarray(made.truth["item_community"], np.int64)
    items = rows["item"].to_numpy().astype(np.int64)
    return Sequences(items, rows["rating"].to_numpy(), offsets, settings.num_items, communities)
