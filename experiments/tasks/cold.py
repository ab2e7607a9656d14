"""Cold items, which are held out of training and clustering, and ranked after their first interactions place them.

    [retrieval.cold]
    share = 0.1
    first = [1, 3, 10]
    k = 1  # clusters that a placed item of a mixture reads; all by default

gives `test/<metric>/first-n` for each n of `first`: the metrics of the pairs of cold items in the test split, after
each cold item has been placed by n of its pairs from the train split. No weights are trained in this step, and hashed
rows do not change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, cast

import polars as pl
import torch
from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass as pydantic_dataclass
from torch import Tensor

import data
from embcomp.graph import Clusters, Edges, Mixture, interactions
from embcomp.methods import GraphHash, Method, SoftGraphHash, Table
from embcomp.methods.base import per_table
from embcomp.nn import CompressedEmbedding
from experiments.config.section import Positive, many, strict


@pydantic_dataclass(frozen=True, kw_only=True, config=strict)
class ColdConfig:
    """The items that are held out of training, and the interactions that place them before they are ranked.

    Attributes:
        share: the share of the items, drawn by the seed of the run.
        first: the numbers of interactions of each item; one slice of the test split for each number.
        k: the number of clusters of a mixture that a placed item reads; all by default.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    first: Annotated[tuple[Positive, ...], BeforeValidator(many), Field(min_length=1)] = (1, 3, 10)
    k: Positive | None = None


@dataclass(frozen=True)
class ColdItems:
    """The cold items' pairs, and the data without them.

    Attributes:
        pairs: the data without the cold items' pairs in train and valid.
        hidden: the cold items' pairs of the train split in a random order, int64 [2, N].
        wanted: the cold items' pairs of the test split, int64 [2, M].
    """

    pairs: data.Interactions
    hidden: Tensor
    wanted: Tensor

    @classmethod
    def drawn(cls, pairs: data.Interactions, config: ColdConfig, seed: int) -> ColdItems:
        """Draw each item as cold with probability `share`, by the seed."""
        generator = torch.Generator().manual_seed(seed)
        cold = torch.rand(pairs.num_items, generator=generator) < config.share
        hidden, wanted = (_of(pairs.edges(split), cold) for split in ("train", "test"))
        warm = pl.col("item_id").is_in(pl.Series((~cold).nonzero()[:, 0].numpy()).implode())
        kept = {split: rows.filter(warm) for split, rows in pairs.pairs.items()}
        order = torch.randperm(hidden.shape[1], generator=generator)
        return cls(dataclasses.replace(pairs, pairs=kept), hidden[:, order], wanted)

    def first(self, n: int) -> Tensor:
        """Return the first `n` hidden pairs of each cold item, int64 [2, N]."""
        items, order = self.hidden[1].sort(stable=True)
        counts = items.unique_consecutive(return_counts=True)[1]
        rank = torch.arange(len(items)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        return self.hidden[:, order[rank < n]]


def _of(edges: Tensor, items: Tensor) -> Tensor:
    return edges[:, items[edges[1]]]


def extended(method: Method, edges: Edges, k: int | None = None) -> Method:
    """Return the method with the items of these interactions placed, if it has clusters; other methods unchanged.

    With mixtures a placed item reads the `k` heaviest clusters.
    """
    if not isinstance(method, GraphHash):
        return method
    users, items = (per_table(method.clusters, Table(name, None, 1), "clusters") for name in ("user_id", "item_id"))
    clusters = Clusters(users, items, quality=0.0, resolution=0.0).extend(edges)
    changed: dict[str, Any] = {"clusters": {"user_id": users, "item_id": clusters.items}}
    if isinstance(method, SoftGraphHash):
        weights = dict(cast(Mapping[str, Mixture | None], method.weights))
        if (mixture := weights["item_id"]) is not None:
            changed["weights"] = weights | {"item_id": mixture.extend(edges, clusters, k)}
    return dataclasses.replace(method, **changed)


@contextmanager
def placed(
    items: CompressedEmbedding, method: Method, tables: Sequence[Table], pairs: Tensor, k: int | None = None
) -> Iterator[None]:
    """Let items read the rows that `extended` gives them from these pairs, int64 [2, N], inside the block."""
    users, sold = pairs.cpu().numpy()
    num_users, num_items = (table.num_embeddings for table in tables)
    edges = interactions((users, sold), num_users=num_users, num_items=num_items)
    before = items.encoder
    items.encoder = extended(method, edges, k).plan(tables).tables[1].encoder.to(pairs.device)
    try:
        yield
    finally:
        items.encoder = before
