"""MovieLens-1M as clicks: ratings 1-2 are negative, 4-5 positive, 3s are dropped (739,012 rows).

Reads the published `ratings.dat` and `users.dat` (`::` between fields) or `ratings.parquet` and `users.parquet`.
Features are user, item, gender, age, occupation and zip, 13,177 values in all rows together; their ids cover all rows,
as in the replication of Unified Embedding (Coleman et al. 2023, arXiv 2305.12102) from which the published figures
come.

F. M. Harper and J. A. Konstan. The MovieLens Datasets: History and Context. ACM TiiS 5(4), 2015.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from data.ids import Field
from data.schema import DataError
from data.source import Source
from data.splits import SPLIT, SPLITS, with_split
from data.text import scan_delimited, text_file

FEATURES = ("user", "item", "gender", "age", "occupation", "zip")
_RATINGS = {"user_id": pl.Int32, "item_id": pl.Int32, "rating": pl.Int8, "timestamp": pl.Int64}
_USERS = {"user_id": pl.Int32, "gender": pl.String, "age": pl.Int8, "occupation": pl.Int8, "zip": pl.String}


def files(folder: Path) -> list[Path]:
    """Return the source files: the parquet pair if it is complete, else the published pair."""
    if (folder / "ratings.parquet").is_file():
        return [folder / "ratings.parquet", folder / "users.parquet"]
    return [text_file(folder, "ratings.dat"), text_file(folder, "users.dat")]


def read(
    folder: Path,
    *,
    split: str = "random",
    seed: int = 0,
    ids: str = "vocabulary",
    held_out: float = 0.0,
    features: str = ",".join(FEATURES),
    order: str = "value",
) -> Source:
    """Read rows in the order of (user, item), whatever the order of the file.

    Args:
        split: "random", 80/10/10 over all rows by the seed; "time": of each user's rows in the order of time the first
            80 % are train, the next 10 % valid, the rest test; "last": the last two rows of each user are both valid
            and test, as in github.com/thomasahle/cce.
        ids: "vocabulary", or "raw" for the ids of the source and hashes of the strings.
        held_out: the share of the items, of all popularities, that is removed from train and valid, so that the test
            split has items that no model has seen.
        features: the features to read, of those above, separated by commas.
        order: the order in which vocabularies are numbered, see `data.ids.Field`.
    """
    chosen = tuple(features.split(","))
    if unknown := [name for name in chosen if name not in FEATURES]:
        raise DataError(f"features: there is no {unknown[0]!r}; there are {', '.join(FEATURES)}")
    if ids not in ("vocabulary", "raw"):
        raise DataError(f"ids must be 'vocabulary' or 'raw', not {ids!r}")
    ratings = read_ratings(files(folder)[0])
    users = read_users(files(folder)[1])
    rows = (
        ratings.sort("user_id", "item_id")
        .filter(pl.col("rating") != 3)
        .join(users, on="user_id", how="left", maintain_order="left")
        .with_columns(label=(pl.col("rating") > 3).cast(pl.Int8))
        .rename({"user_id": "user", "item_id": "item"})
        .collect()
    )
    unknown = rows.filter(pl.col("gender").is_null())
    if len(unknown):
        raise DataError(f"user {unknown['user'][0]} has ratings but is not in {files(folder)[1]}")
    if split == "time":
        # The order of the rows of a user, 0 <= share < 1.
        rank = pl.struct("position", "item").rank("ordinal").over("user") - 1
        share = rank / pl.len().over("user")
        lazy = rows.lazy().with_columns((share >= 0.8).cast(pl.UInt8).add((share >= 0.9).cast(pl.UInt8)).alias(SPLIT))
    elif split == "last":
        behind = pl.struct("position", "item").rank("ordinal", descending=True).over("user") <= 2
        marked = rows.lazy().with_columns(behind.cast(pl.UInt8).alias(SPLIT))
        again = marked.filter(pl.col(SPLIT) == 1).with_columns(pl.lit(2, pl.UInt8).alias(SPLIT))
        lazy = pl.concat([marked, again])
    else:
        lazy = with_split(rows.lazy(), len(rows), split, seed)
    if not 0 <= held_out < 1:
        raise DataError(f"held_out must be at least 0 and below 1, not {held_out}")
    if held_out:
        hidden = pl.col("item").is_in(held_out_items(rows["item"], held_out, seed))
        lazy = lazy.filter(~hidden | (pl.col(SPLIT) == SPLITS.index("test")))
    kind = "all" if ids == "vocabulary" else "raw"
    fields = tuple(Field(name, kind, order=order) for name in chosen)  # pyright: ignore[reportArgumentType] (it is checked there)
    return Source(lazy, fields, label="label", group="user")


def held_out_items(items: pl.Series, share: float, seed: int) -> list[int]:
    """Draw a share of the items, the same from each stretch of popularity (20 items of consecutive rank)."""
    ranked = items.value_counts().sort("count", "item", descending=[True, False])["item"].to_numpy()
    rng = np.random.default_rng(seed)
    due, chosen = 0.0, []
    for start in range(0, len(ranked), 20):
        stretch = rng.permutation(ranked[start : start + 20])
        due += share * len(stretch)
        chosen += stretch[: round(due) - len(chosen)].tolist()
    return chosen


def read_ratings(path: Path) -> pl.LazyFrame:
    """Return user_id, item_id, rating, and the position in each user's order of time (0..); unknown times come last."""
    if path.suffix == ".parquet":
        return pl.scan_parquet(path).select("user_id", "item_id", "rating", pl.col("position").fill_null(2**15 - 1))
    rows = scan_delimited(path, "::", _RATINGS).collect().lazy()
    return rows.with_columns(position=pl.col("timestamp").rank("ordinal").over("user_id").cast(pl.Int16) - 1).select(
        "user_id", "item_id", "rating", "position"
    )


def read_users(path: Path) -> pl.LazyFrame:
    if path.suffix == ".parquet":
        return pl.scan_parquet(path).select(list(_USERS))
    return scan_delimited(path, "::", _USERS)


def read_genres(folder: Path) -> pl.DataFrame | None:
    """Return item_id and first genre of each film, from `items.parquet` or `movies.dat`; None without either."""
    known, published = folder / "items.parquet", folder / "movies.dat"
    if known.is_file():
        films = pl.read_parquet(known, columns=["item_id", "genres"])
    elif published.is_file():
        lines = [line.split("::") for line in published.read_text(encoding="latin-1").splitlines() if line]
        films = pl.DataFrame({"item_id": [int(line[0]) for line in lines], "genres": [line[-1] for line in lines]})
    else:
        return None
    return films.select(pl.col("item_id").cast(pl.Int32), genre=pl.col("genres").str.split("|").list.first())
