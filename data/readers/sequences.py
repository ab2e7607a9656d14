"""The readers of behavior sequences: MovieLens-1M, Globo.com and synthetic ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from data.readers import globo, ml_1m
from data.readers.synthetic import Config, generate
from data.sequences import Sequences


def files(folder: Path) -> list[Path]:
    """Return the files of ratings and users, and that of genres if it exists."""
    genres = [folder / "items.parquet", folder / "movies.dat"]
    return [*ml_1m.files(folder), *[path for path in genres if path.is_file()][:1]]


def read(folder: Path) -> Sequences:
    """Read the sequences of a folder of MovieLens-1M; films and users are numbered in the order of their ids."""
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


def read_globo(folder: Path) -> Sequences:
    """Read each user's first click on each article of Globo.com that has a content vector, as a rating of 5."""
    clicks, _, embeddings = globo.files(folder)
    with np.load(embeddings) as arrays:
        order = np.argsort(arrays["article_id"])
        articles, vectors = arrays["article_id"][order], arrays["embedding"][order]
    known = pl.DataFrame({"click_article_id": articles, "item": np.arange(len(articles), dtype=np.int64)})
    rows = (
        pl.read_parquet(clicks, columns=["user_id", "click_article_id", "click_timestamp"])
        .join(known, on="click_article_id")
        .sort("user_id", "click_timestamp", "click_article_id")
        .unique(["user_id", "click_article_id"], keep="first", maintain_order=True)
    )
    _, starts = np.unique(rows["user_id"].to_numpy(), return_index=True)
    offsets = np.append(starts, len(rows)).astype(np.int64)
    ratings = np.full(len(rows), 5, np.int8)
    return Sequences(rows["item"].to_numpy(), ratings, offsets, len(articles), values=articles, content=vectors)


def synthetic(**config: float) -> Sequences:
    """Generate clicks of `synthetic` as ratings of 5, other rows as ratings of 1; communities are the categories."""
    settings = Config(**config)  # type: ignore[arg-type]
    made = generate(settings)
    rows = made.rows.sort("user", "time").select("user", "item", rating=4 * pl.col("label").cast(pl.Int8) + 1)
    _, starts = np.unique(rows["user"].to_numpy(), return_index=True)
    offsets = np.append(starts, len(rows)).astype(np.int64)
    communities = np.asarray(made.truth["item_community"], np.int64)
    items = rows["item"].to_numpy().astype(np.int64)
    return Sequences(items, rows["rating"].to_numpy(), offsets, settings.num_items, communities)
