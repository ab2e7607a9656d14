"""`Mixture`: the clusters whose weighted mean an id is, in few bits. Needs torch alone; `soft` computes mixtures."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from embcomp import artifact, configs
from embcomp.graph.cluster_map import ClusterMap, Side
from embcomp.graph.files import read_file
from embcomp.ops.packing import bits_for, pack, packed_words, unpack

if TYPE_CHECKING:
    from embcomp.graph.clustering import Clusters
    from embcomp.graph.edges import Edges

HEAVIEST = 255


@configs.kind
@dataclass(frozen=True, eq=False)
class Mixture:
    """A map from ids to k rows and their weights, heaviest first, made by `embcomp.graph.mixture` or `Mixture.of`.

    Attributes:
        words: the packed rows, int32 (`embcomp.ops.packing`), k entries of `bits` bits for each id.
        weights: the weights, uint8 [num_ids, k], relative to the largest of the id, 255. An id without weights is
            unseen.
        rows: the number of rows of the table, with those reserved for unseen ids.
        unseen_rows: the number of them that are reserved for unseen ids.
        side: the side of an edge that the ids are, "users" or "items".
        clustering: the name of the clustering.

    Example:
        >>> import torch
        >>> from embcomp.graph import ClusterMap, Mixture
        >>> clusters = ClusterMap.of([0, 1], rows=2)
        >>> found = Mixture.of(torch.tensor([[0, 1], [1, 0]]), torch.tensor([[3.0, 1.0], [1.0, 0.0]]), clusters)
        >>> found.weights
        tensor([[255,  85],
                [255,   0]], dtype=torch.uint8)
    """

    expected: ClassVar[str] = "a Mixture, such as embcomp.graph.mixture(...) makes it"

    words: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)
    rows: int
    unseen_rows: int = 0
    side: Side = "items"
    clustering: str = ""

    def __post_init__(self) -> None:
        if self.weights.ndim != 2 or self.weights.dtype != torch.uint8:
            raise ValueError(
                f"weights of a mixture must be uint8 [num_ids, k], got {self.weights.dtype} {list(self.weights.shape)}"
            )
        words = packed_words(self.weights.numel(), self.bits)
        if self.words.shape != (words,):
            raise ValueError(f"a mixture of this size has {words} words of rows, got {list(self.words.shape)}")

    @classmethod
    def of(cls, rows: Tensor, weights: Tensor, clusters: ClusterMap) -> Self:
        """Pack a mixture.

        Args:
            rows: the rows of each id, int64 [num_ids, k], in [0, clusters.own_rows).
            weights: their weights, floats [num_ids, k], not negative.
            clusters: the map of these rows.

        Raises:
            ValueError: shapes differ, rows are not integers or out of range, or weights are negative or not finite.
        """
        if rows.shape != weights.shape or rows.ndim != 2 or rows.shape[1] < 1:
            raise ValueError(f"rows {list(rows.shape)} and weights {list(weights.shape)} must both be [num_ids, k]")
        if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
            raise ValueError("weights of a mixture must be finite and not negative")
        if rows.is_floating_point() or bool(((rows < 0) | (rows >= clusters.own_rows)).logical_and(weights > 0).any()):
            raise ValueError(f"rows of a mixture must be integers in [0, {clusters.own_rows}), got {rows.dtype}")
        weights, order = weights.double().sort(dim=1, descending=True, stable=True)
        share = weights / weights[:, :1].clamp(min=torch.finfo(torch.float64).tiny)
        stored = (share * HEAVIEST).round().to(torch.uint8)
        rows = rows.gather(1, order).masked_fill(stored == 0, 0)
        words = pack(rows, bits_for(clusters.own_rows))
        return cls(words, stored, clusters.rows, clusters.unseen_rows, clusters.side, clusters.clustering)

    @property
    def num_ids(self) -> int:
        """The number of ids that it covers; ids beyond are unseen."""
        return self.weights.shape[0]

    @property
    def k(self) -> int:
        """The number of rows of an id."""
        return self.weights.shape[1]

    @property
    def own_rows(self) -> int:
        """The number of rows of clusters."""
        return self.rows - self.unseen_rows

    @property
    def bits(self) -> int:
        """The bits of a row number."""
        return bits_for(self.own_rows)

    @property
    def nbytes(self) -> int:
        """The bytes of rows and weights together."""
        return self.words.nbytes + self.weights.nbytes

    def rows_of(self, ids: Tensor) -> Tensor:
        """Return the rows of ids in [0, num_ids), int64 [N, k]."""
        return unpack(self.words, self.bits, ids, self.k).view(-1, self.k)

    def first(self, k: int) -> Self:
        """Return the mixture of only the k heaviest rows of each id."""
        if not 1 <= k <= self.k:
            raise ValueError(f"a mixture of {self.k} clusters has no {k} heaviest ones: compute it with k={k}")
        if k == self.k:
            return self
        words = pack(self.rows_of(torch.arange(self.num_ids, device="cpu"))[:, :k], self.bits)
        weights = self.weights[:, :k].contiguous()
        return type(self)(words, weights, self.rows, self.unseen_rows, self.side, self.clustering)

    def extend(self, new_edges: Edges, clusters: Clusters, k: int | None = None) -> Self:
        """Return the mixture with entries for ids that had none, from these interactions; other ids keep theirs.

        Args:
            new_edges: the interactions of new ids, and of their neighbours, as in `ClusterMap.extend`.
            clusters: the same clustering, extended by these interactions.
            k: the number of clusters that a new id reads, the heaviest; by default all. The mean over clusters that
                were not trained for the id is the shorter, the more clusters there are. If vectors are ranked by inner
                products, take 1.
        """
        from embcomp.graph.shares import cluster_shares  # which needs scipy

        reads = self.k if k is None else k
        if not 1 <= reads <= self.k:
            raise ValueError(f"new ids of a mixture of {self.k} clusters read 1 to {self.k} of them, got k={k}")
        fresh = type(self).of(*cluster_shares(new_edges, clusters, self.side, self.k))
        if fresh.clustering != self.clustering or fresh.rows != self.rows:
            raise ValueError(f"the mixture is of clustering {self.clustering!r}, the clusters of {fresh.clustering!r}")
        ids = torch.arange(max(self.num_ids, fresh.num_ids))
        rows, weights = (torch.zeros(ids.numel(), self.k, dtype=dtype) for dtype in (torch.int64, torch.uint8))
        for source, most in ((fresh, reads), (self, self.k)):  # the old one last: it stays
            has = (source.weights[:, 0] > 0).nonzero()[:, 0]
            rows[has], weights[has] = source.rows_of(has), source.weights[has]
            weights[has, most:] = 0
        return type(self)(pack(rows, self.bits), weights, self.rows, self.unseen_rows, self.side, self.clustering)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the mixture as one file, with a checksum."""
        header = {name: getattr(self, name) for name in ("rows", "unseen_rows", "side", "clustering")}
        artifact.save(path, "mixture", header, {"words": self.words, "weights": self.weights})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a mixture that `save` wrote. Raise ValueError if the file is of another kind, truncated or edited."""
        header, tensors = read_file(path, "mixture")
        return cls(**header, **tensors)
