"""The clicks of Globo.com by day: each reader's first click on each article, with the reader's clicks before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from data.readers import globo
from embcomp.graph import Edges, interactions

DAY = 24 * globo.HOUR
_BRASILIA = -3 * globo.HOUR  # the log begins at midnight there


@dataclass(frozen=True, eq=False)
class Clicks:
    """All clicks in the order of time. Readers and articles are numbered in the order of their first clicks.

    Attributes:
        readers: the reader of each click, int64 [N].
        articles: the article of each click, int64 [N].
        days: the day of each click, int64 [N], from 0.
        histories: the articles of the reader's latest clicks before it, oldest first, int64 [N, length]; -1 if there
            are fewer.
        content: the vectors of the articles, float32 [articles, dim].
        held_out: the clicks that are not trained on, bool [N].
    """

    readers: Tensor
    articles: Tensor
    days: Tensor
    histories: Tensor
    content: Tensor
    held_out: Tensor

    def number(self, night: int) -> int:
        """Return the number of articles that were clicked until the end of a day."""
        return int(self.articles[self.days <= night].max()) + 1

    def rows(self, first: int, last: int, held_out: bool = False) -> Tensor:
        """Return the clicks of some days, the last one included: int64 [n]."""
        chosen = (self.days >= first) & (self.days <= last) & (self.held_out == held_out)
        return chosen.nonzero().squeeze(1)

    def counts(self, rows: Tensor, number: int) -> Tensor:
        """Return how often each of the first `number` articles was clicked in these rows: int64 [number]."""
        return torch.bincount(self.articles[rows], minlength=number)

    def edges(self, rows: Tensor, night: int) -> Edges:
        """Return these rows as edges between all readers and articles until the end of a day."""
        pairs = (self.readers[rows].numpy(), self.articles[rows].numpy())
        readers = int(self.readers[self.days <= night].max()) + 1
        return interactions(pairs, num_users=readers, num_items=self.number(night))


def read(folder: Path, *, readers: float, length: int, held_out: float, seed: int) -> Clicks:
    """Read the clicks of a sample of readers.

    Args:
        folder: the folder of the files of `data.readers.globo`.
        readers: the share of readers that is kept.
        length: the most clicks of a history.
        held_out: the share of clicks that is held out.
        seed: the seed of both draws.
    """
    clicks, _, embeddings = globo.files(folder)
    with np.load(embeddings) as arrays:
        known = pl.DataFrame({"article": arrays["article_id"], "place": np.arange(len(arrays["article_id"]))})
        vectors = arrays["embedding"]
    columns = {"user_id": "reader", "click_article_id": "article", "click_timestamp": "time"}
    frame = pl.read_parquet(clicks, columns=list(columns)).rename(columns)
    draw = np.random.default_rng(seed)
    everyone = frame["reader"].unique().sort()
    frame = (
        frame.filter(pl.col("reader").is_in(everyone.filter(pl.Series(draw.random(len(everyone)) < readers)).implode()))
        .join(known.cast({"article": frame.schema["article"]}), on="article")
        .sort("reader", "time", "article")
        .unique(["reader", "article"], keep="first", maintain_order=True)
        .with_columns(before=pl.int_range(pl.len()).over("reader"), row=pl.int_range(pl.len()))
    )
    by_time = frame.sort("time", "reader", "article")
    order = by_time["row"].to_numpy()
    places = by_time["place"].unique(maintain_order=True)
    articles = _numbered(by_time["article"])
    of_row = np.empty_like(articles)
    of_row[order] = articles
    back = np.arange(length, 0, -1)
    earlier = by_time["before"].to_numpy()[:, None] >= back
    histories = np.where(earlier, of_row[np.maximum(order[:, None] - back, 0)], -1)
    day = (by_time["time"].to_numpy() + _BRASILIA) // DAY
    arrays = {
        "readers": _numbered(by_time["reader"]),
        "articles": articles,
        "days": day - day.min(),
        "histories": histories,
        "content": vectors[places.to_numpy()],
        "held_out": draw.random(len(frame)) < held_out,
    }
    return Clicks(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def _numbered(values: pl.Series) -> np.ndarray:
    """Return the number of each value in the order of first occurrence: int64."""
    first = values.unique(maintain_order=True)
    numbers = pl.DataFrame({"value": first, "number": np.arange(len(first))})
    joined = pl.DataFrame({"value": values}).join(numbers, on="value", how="left", maintain_order="left")
    return joined["number"].to_numpy().copy()
