"""A ranking of vectors for a sample of queries, and how much of it other vectors keep."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp.ops.checks import INTEGERS, check_tensor
from embcomp.retrieval.checks import check_device, check_matrix
from embcomp.retrieval.vector_codes import Metric

_QUERIES = 4096  # at most so many rank
_ROWS = 1 << 16  # at most so many vectors
_BLOCK = 512  # queries at a time


@dataclass(frozen=True)
class Ranking:
    """The queries, the vectors that are ranked for them, and the pairs that they should find or leave out.

    Attributes:
        vectors: the vectors, float32 [n, dim].
        queries: the queries, float32 [m, dim].
        known: the pairs of a query and a vector that are left out, int64 [2, N].
        wanted: the pairs that should be found, int64 [2, E]; None for the best by float vectors.
        k: the number of results.
        best: the best rows by float vectors, int64 [m, k].
    """

    vectors: Tensor
    queries: Tensor
    known: Tensor
    wanted: Tensor | None
    k: int
    best: Tensor

    @classmethod
    def of(
        cls, vectors: Tensor, queries: Tensor | None, wanted: Tensor | None, known: Tensor | None, k: int,
        metric: Metric, seed: int,
    ) -> Ranking:  # fmt: skip
        """Check the arguments of `embcomp.retrieval.choose`, and draw samples of them."""
        draw = torch.Generator().manual_seed(seed)
        if queries is None:
            if wanted is not None or known is not None:
                raise ValueError("wanted and known are pairs with queries: give queries, too")
            chosen = _drawn(torch.arange(len(vectors)), _QUERIES, draw)
            queries, known = vectors[chosen], torch.stack([torch.arange(len(chosen)), chosen])
        check_device(queries, "queries", vectors.device)
        queries = check_matrix(queries, "queries", vectors.shape[1], metric == "cosine")
        if not len(queries):
            raise ValueError("there are no queries to rank for")
        sizes = len(queries), len(vectors)
        known = torch.zeros(2, 0, dtype=torch.int64) if known is None else _pairs(known, "known", sizes)
        wanted = None if wanted is None else _pairs(wanted, "wanted", sizes)
        if wanted is not None and not wanted.shape[1]:
            raise ValueError("wanted holds no pair: leave it out to keep the ranking by float vectors")
        asking = torch.arange(len(queries)) if wanted is None else wanted[0].unique()
        asking = _drawn(asking, _QUERIES, draw)
        wanted = None if wanted is None else _renumbered(wanted, 0, asking, sizes[0])
        rows = torch.arange(len(vectors))
        if len(vectors) > _ROWS:
            always = rows[:0] if wanted is None else wanted[1].unique()
            others = rows[~torch.isin(rows, always)]
            rows = torch.cat([always, _drawn(others, max(_ROWS - len(always), k), draw)]).sort().values
        known = _renumbered(_renumbered(known, 0, asking, sizes[0]), 1, rows, sizes[1])
        wanted = None if wanted is None else _renumbered(wanted, 1, rows, sizes[1])
        vectors, queries = vectors[rows.to(vectors.device)], queries[asking.to(queries.device)]
        if metric == "cosine":
            queries = F.normalize(queries)
        compared = F.normalize(vectors) if metric == "cosine" else vectors
        ranking = cls(vectors, queries, known, wanted, k, torch.zeros(0, dtype=torch.int64))
        return cls(vectors, queries, known, wanted, k, ranking.first(compared))

    def first(self, vectors: Tensor) -> Tensor:
        """Return the k rows of largest product for each query, without known pairs: int64 [m, k]."""
        found = []
        for block in torch.arange(len(self.queries)).split(_BLOCK):
            scores = self.queries[block.to(vectors.device)] @ vectors.T
            of_block = self.known[:, (self.known[0] >= block[0]) & (self.known[0] <= block[-1])]
            scores[of_block[0] - block[0], of_block[1]] = -torch.inf
            found.append(scores.topk(self.k).indices.cpu())
        return torch.cat(found)

    def kept(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return each query's recall at k by other vectors, and the share of the best by float vectors: float [m]."""
        first = self.first(vectors)
        agreement = (first.unsqueeze(2) == self.best.unsqueeze(1)).any(2).float().mean(1)
        return (agreement if self.wanted is None else self._recall(first)), agreement

    def _recall(self, first: Tensor) -> Tensor:
        assert self.wanted is not None
        numbers = torch.arange(len(first)).unsqueeze(1) * len(self.vectors)
        hits = torch.isin(numbers + first, self.wanted[0] * len(self.vectors) + self.wanted[1]).sum(1)
        return hits / self.wanted[0].bincount(minlength=len(first)).clamp(max=self.k)


def _drawn(numbers: Tensor, most: int, draw: torch.Generator) -> Tensor:
    """Return at most so many of the numbers, in order."""
    if len(numbers) <= most:
        return numbers
    return numbers[torch.randperm(len(numbers), generator=draw)[:most].sort().values]


def _pairs(pairs: Tensor, name: str, sizes: tuple[int, int]) -> Tensor:
    check_tensor(pairs, name)
    if pairs.dtype not in INTEGERS or pairs.dim() != 2 or len(pairs) != 2:
        raise ValueError(f"{name} must be integers [2, n], got {pairs.dtype} {list(pairs.shape)}")
    pairs = pairs.cpu().long()
    for row, size, what in zip(pairs, sizes, ("queries", "vectors"), strict=True):
        if len(row) and not 0 <= int(row.min()) <= int(row.max()) < size:
            raise ValueError(f"{name} lie in [{int(row.min())}, {int(row.max())}], there are {size} {what}")
    return pairs.unique(dim=1)


def _renumbered(pairs: Tensor, side: int, chosen: Tensor, size: int) -> Tensor:
    """Return the pairs whose id on a side was chosen, with its place among the chosen ones."""
    place = torch.full((size,), -1)
    place[chosen] = torch.arange(len(chosen))
    places = place[pairs[side]]
    pairs = pairs.clone()
    pairs[side] = places
    return pairs[:, places >= 0]
