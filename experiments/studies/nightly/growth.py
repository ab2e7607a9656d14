"""The tables of articles, and how each method makes room for the articles of a new day without moving the others."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import embcomp
from embcomp.graph import Clusters, align, cluster, remap_
from embcomp.methods import Method
from embcomp.nn import CompressedEmbedding
from embcomp.semantic_ids import ResidualKMeans
from experiments.studies.nightly.clicks import Clicks

START = 0.1  # the standard deviation of fresh rows


class Growing:
    """A method whose table grows from night to night.

    Args:
        clicks: all clicks; only those until the night in question are used.
        settings: "method", the settings of that method in embcomp, and for `LowBit` those of the method inside as "of".
        seed: the seed of the clustering, of the tokenizer and of hashes.
    """

    def __init__(self, clicks: Clicks, settings: Mapping[str, Any], seed: int) -> None:
        self.clicks, self.seed = clicks, seed
        self.inside = dict(settings.get("of") or settings)
        self.bits = settings["bits"] if "of" in settings else None
        self._clusters: dict[tuple[int, int], Clusters] = {}

    def method(self, night: int, begun: int) -> Method:
        """Return the method for the articles until a night, by the clicks so far.

        Args:
            night: the night.
            begun: the night in which clusters and tokenizer were fitted; since then they were extended.
        """
        name, settings = self.inside["method"], {k: v for k, v in self.inside.items() if k != "method"}
        if name == "GraphHash":
            inner: Method = embcomp.GraphHash(self._clustered(night, begun, **settings).items)
        elif name == "SemanticIds":
            inner = self._semantic(night, begun, **settings)
        else:
            inner = getattr(embcomp, name)(**settings)
        return inner if self.bits is None else embcomp.LowBit(bits=self.bits, of=inner)

    def _clustered(self, night: int, begun: int, **settings: Any) -> Clusters:
        """Cluster the clicks so far; in later nights extend, or with "again" cluster once more and align the result."""
        if (night, begun) not in self._clusters:
            edges = self.clicks.edges(self.clicks.rows(0, night), night)
            made = None if night == begun else self._clustered(night - 1, begun, **settings)
            if made is not None and not settings.get("again"):
                made = made.extend(edges)
            else:
                rows, unseen = (settings["readers"], settings["rows"]), (0, settings["unseen"])
                new = cluster(edges, rows=rows, unseen_rows=unseen, seed=self.seed + night, progress=False)
                new = new.with_own_rows(items=edges.most_frequent("items", settings["own"]).tolist())
                made = new if made is None else align(made, new)
            self._clusters[night, begun] = made
        return self._clusters[night, begun]

    def _semantic(self, night: int, begun: int, rows: int, levels: int, codebook_size: int) -> Method:
        number, content = self.clicks.number(night), self.clicks.content
        tokenizer = ResidualKMeans(levels, codebook_size, seed=self.seed)  # the same one if fitted to the same articles
        codes = tokenizer.fit(content[: self.clicks.number(begun)]).encode(content[:number])
        counts = self.clicks.counts(self.clicks.rows(0, night), number)
        shared = {"counts": counts, "codebook_size": codebook_size, "min_support": 0}
        return embcomp.SemanticIds(codes, embcomp.PrefixNgram(levels), rows=rows, **shared)


def fresh(method: Method, number: int, dim: int, seed: int) -> CompressedEmbedding:
    """Return an untrained table of `number` articles."""
    torch.manual_seed(seed)
    table = CompressedEmbedding(number, dim, method)
    for store in table.stores:
        nn.init.normal_(store.weight, std=START)  # pyright: ignore[reportArgumentType]
    return table


@torch.no_grad()
def grown(table: CompressedEmbedding, method: Method, number: int, seed: int) -> CompressedEmbedding:
    """Return a longer table with the trained rows: the vectors of the earlier articles are the same."""
    inner = getattr(method, "of", method)
    if isinstance(inner, embcomp.GraphHash):
        longer = copy.deepcopy(table)
        clusters: Any = inner.clusters
        remap_(longer, clusters)
        return longer
    longer = fresh(method, number, table.embedding_dim, seed)
    for old, new in zip(table.parameters(), longer.parameters(), strict=True):
        new[: len(old)] = old
    return longer
