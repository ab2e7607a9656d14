"""Globo.com news clicks on articles, most of which are hours old.

Clicks on the articles that have a content vector (667,048 clicks, 4,097 articles, 1-26 October 2017). Each click is a
row with label 1, followed by `negatives` rows of the same reader and moment with label 0, whose article is drawn
uniformly from the other articles clicked in the same hour. By default the split follows time: the first 80 % of the
clicks are train, the next 10 % valid, the rest test. Two thirds of the test clicks then go to 22 articles that did not
exist in train, and only 8 % of the valid ones: a test of cold starts, not of tables. A random split has none of these.

Files: `clicks.parquet` and `articles.parquet` with the columns of the published CSV files, `article_embeddings.npz`
with the arrays `article_id` [N] and `embedding` float32 [N, dim].

G. de Souza Pereira Moreira, F. Ferreira, A. M. da Cunha. News Session-Based Recommendations using Deep Neural Networks.
DLRS 2018, arXiv 1808.00076.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from data.ids import Field
from data.schema import DataError
from data.source import Source
from data.splits import SPLIT

HOUR = 3_600_000  # milliseconds
_CONTEXT = {
    "environment": "click_environment",
    "device": "click_deviceGroup",
    "os": "click_os",
    "country": "click_country",
    "region": "click_region",
    "referrer": "click_referrer_type",
}


def files(folder: Path) -> list[Path]:
    return [folder / "clicks.parquet", folder / "articles.parquet", folder / "article_embeddings.npz"]


def read(
    folder: Path,
    *,
    negatives: int = 1,
    split: str = "time",
    first_share: float = 0.0,
    train_share: float = 0.8,
    seed: int = 0,
) -> Source:
    """Read rows in the order of time. Columns `first_day` and `older` tell the age of the clicked article.

    A click and the rows drawn for it are in the same split and form a group: grouped AUC is the share of pairs in which
    the clicked article has the higher score. Articles of unknown age are neither new nor older. Readers with fewer than
    five clicks in train share an id.

    Args:
        negatives: the number of rows with label 0 for each click.
        split: the split of the clicks, "time" or "random".
        first_share: the begin of train, as a share of all clicks.
        train_share: the end of train; valid and test are always the last two tenths.
        seed: the seed of the negatives and of a random split.
    """
    if negatives < 1:
        raise DataError(f"negatives must be at least 1, not {negatives}")
    if not 0 <= first_share < train_share <= 0.8:
        raise DataError(f"train must be a part of the first 0.8 of the clicks, not [{first_share}, {train_share})")
    if split not in ("time", "random"):
        raise DataError(f"split must be 'time' or 'random', not {split!r}")
    if split == "random" and (first_share, train_share) != (0, 0.8):
        raise DataError("first_share and train_share are parts of time: leave them out with split='random'")
    with np.load(files(folder)[2]) as arrays:
        order = np.argsort(arrays["article_id"])
        articles, vectors = arrays["article_id"][order], arrays["embedding"][order]
    known = pl.DataFrame({"click_article_id": articles, "item": np.arange(len(articles), dtype=np.int32)})
    born = pl.read_parquet(files(folder)[1], columns=["article_id", "created_at_ts"])
    clicks = (
        pl.read_parquet(files(folder)[0])
        .join(known, on="click_article_id")
        .sort("click_timestamp", "user_id", "click_article_id")
        .select("item", pl.col("click_timestamp").alias("time"), pl.col("user_id").alias("user"), **_context())
    )
    created = known.join(born, left_on="click_article_id", right_on="article_id", how="left", maintain_order="left")
    position = np.arange(len(clicks)) / len(clicks)
    if split == "random":
        position = np.random.default_rng([seed, 1]).permutation(position)
    part = (position >= 0.8).astype(np.uint8) + (position >= 0.9)
    age = pl.col("time") - created["created_at_ts"].gather(clicks["item"])
    clicks = clicks.with_columns(
        pl.Series(SPLIT, part),
        click=pl.int_range(len(clicks)),
        hour=(pl.col("time") // HOUR % 24).cast(pl.Int32),
        first_day=(age < 24 * HOUR).fill_null(False),
        older=(age >= 24 * HOUR).fill_null(False),
    )
    others = _others(clicks["time"].to_numpy() // HOUR, clicks["item"].to_numpy(), negatives, seed)
    used = ((position >= first_share) & (position < train_share)) | (position >= 0.8)
    used &= others[:, 0] >= 0  # another article was alive
    item = np.concatenate([clicks["item"].to_numpy()[:, None], others], 1)[used]
    rows = clicks.filter(used).select(pl.exclude("item").repeat_by(negatives + 1).explode())
    rows = rows.with_columns(
        pl.Series("item", item.reshape(-1).astype(np.int32)),
        pl.Series("label", np.tile(np.arange(negatives + 1) == 0, len(item)).astype(np.int8)),
    )
    fields = [
        Field("user", min_count=5 * (negatives + 1)),
        Field("item", len(articles)),
        *(Field(name, "all") for name in _CONTEXT),
        Field("hour", 24),
    ]
    return Source(
        rows.lazy(),
        tuple(fields),
        label="label",
        group="click",
        columns=("first_day", "older"),
        content={"item": vectors},
    )


def _context() -> dict[str, pl.Expr]:
    return {name: pl.col(column) for name, column in _CONTEXT.items()}


def _others(hour: np.ndarray, item: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Draw `number` other items for each click, uniformly from those clicked in its hour; -1 if there are none."""
    most = int(item.max()) + 1
    alive = np.unique(hour * most + item)  # sorted: the items of an hour lie side by side
    start = np.searchsorted(alive, hour * most)
    size = np.searchsorted(alive, (hour + 1) * most) - start
    own = np.searchsorted(alive, hour * most + item) - start
    drawn = np.random.default_rng(seed).integers(0, np.maximum(size - 1, 1)[:, None], (len(item), number))
    drawn += drawn >= own[:, None]  # over the own place
    others = alive[np.minimum(start[:, None] + drawn, len(alive) - 1)] % most
    return np.where((size > 1)[:, None], others, -1)
