"""SoftGraphHash: an id is a fixed weighted mean of the clusters around it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import torch
from torch import Tensor

from embcomp.graph.cluster_map import Side
from embcomp.graph.mixtures import HEAVIEST, Mixture
from embcomp.methods.base import KEY_BYTES, Chunk, Concat, Ladder, Plan, Rows, Sizes, Store, Table, TablePlan, per_table
from embcomp.methods.graph.graphhash import GraphHash
from embcomp.methods.hashing import HashEncoder
from embcomp.ops.packing import bits_for, pack, packed_words, unpack
from embcomp.settings import ReadCount, Within

if TYPE_CHECKING:
    from embcomp.graph.clustering import Clusters
    from embcomp.graph.edges import Edges

WHOLE = 8  # the bits of a weight in a mixture


class MixtureEncoder(HashEncoder):
    """An encoder in which an id reads the k rows of its mixture, with weights of sum 1; unseen ids read hashed rows.

    Weights of 8 bits are stored as in the mixture, uint8 [num_ids, k], those of fewer bits are packed into words.
    """

    words: Tensor
    weights: Tensor
    weight_bits: int = WHOLE  # of files that were saved before there was a choice

    def __init__(self, table: Table, config: Mapping[str, Any], seed: int, found: Mixture, weight_bits: int) -> None:
        super().__init__(table, config, seed, [found.unseen_rows or found.rows], [1])
        self.num_ids, self.bits, self.k = found.num_ids, found.bits, found.k
        self.weight_bits = weight_bits
        self.first = found.own_rows if found.unseen_rows else 0
        self.register_buffer("words", found.words)
        self.register_buffer("weights", _stored(found, weight_bits))

    def weights_of(self, ids: Tensor) -> Tensor:
        """Return the stored weights of ids in [0, num_ids), integers [N, k], which are not yet divided by their sum."""
        if self.weight_bits == WHOLE:
            return self.weights.index_select(0, ids)
        return unpack(self.weights, self.weight_bits, ids, self.k).view(-1, self.k)

    def known(self) -> Tensor:
        """Return which ids have a mixture, bool [num_ids]."""
        return self.weights_of(torch.arange(self.num_ids, device=self.weights.device))[:, 0] > 0

    def set_mixture(self, found: Mixture) -> bool:
        """Set another mixture over as many rows; the table then has the mixture's number of ids.

        Returns:
            True if all ids that had a mixture keep it.

        Raises:
            ValueError: the new mixture is over other rows, or has fewer clusters or fewer ids.
        """
        found = found.first(self.k)
        old = torch.arange(self.num_ids, device="cpu")
        if (found.bits, found.own_rows if found.unseen_rows else 0) != (self.bits, self.first) or (
            found.unseen_rows or found.rows
        ) != self.ranges[0]:
            raise ValueError(f"table {self.table.name!r}: the new mixture is over other rows, {found!r}")
        if found.num_ids < self.num_ids:
            raise ValueError(
                f"table {self.table.name!r} has a mixture of {self.num_ids} ids, the new one has {found.num_ids}: give "
                "num_users and num_items to `interactions`"
            )
        before = copy.deepcopy(self).cpu()
        known = before.known()
        same_rows = found.rows_of(old) == unpack(before.words, self.bits, old, self.k).view(-1, self.k)
        if self.table.num_embeddings is not None:
            self.table = dataclasses.replace(self.table, num_embeddings=found.num_ids)
            self.config["num_embeddings"] = found.num_ids
        self.config_of("ids")["ids"] = self.num_ids = found.num_ids
        weights = _stored(found, self.weight_bits)
        self.words, self.weights = found.words.to(self.words.device), weights.to(self.weights.device)
        same = same_rows & (self.weights_of(old.to(self.weights.device)).cpu() == before.weights_of(old))
        return bool(same[known].all())

    def encode(self, ids: Tensor) -> list[Rows]:
        (hashed,) = super().encode(ids)
        known = ids.clamp(max=self.num_ids - 1)
        rows = unpack(self.words, self.bits, known, self.k).view(-1, self.k)
        weights = self.weights_of(known).float()
        if self.table.num_embeddings is None:
            weights = weights.masked_fill((ids >= self.num_ids).unsqueeze(-1), 0.0)
        total = weights.sum(1, keepdim=True)
        unseen = total == 0
        alone = unseen & (torch.arange(self.k, device=ids.device) == 0)
        rows = torch.where(alone, hashed.rows + self.first, rows)
        return [Rows(rows, torch.where(alone, 1.0, weights / total.clamp(min=1.0)))]


def _stored(found: Mixture, bits: int) -> Tensor:
    """The weights of a mixture in so many bits; the heaviest of an id is the largest number of these bits."""
    if bits == WHOLE:
        return found.weights
    return pack((found.weights.float() * ((2**bits - 1) / HEAVIEST)).round().long(), bits)


@dataclass(frozen=True, kw_only=True, eq=False)
class SoftGraphHash(GraphHash):
    """A method by which an id is a fixed weighted mean of k clusters around it in the graph.

    The mixture tells the ids of one cluster apart by the other clusters that they are near to. Its weights come from
    the graph (`embcomp.graph.mixture`), or are equal over two clusters, as in BACO's second cluster for users
    (`embcomp.graph.second_clusters`, arXiv 2604.18351). Each of the k entries takes `weight_bits` bits for the weight
    and ceil(log2 rows) bits for the row.

    Args:
        clusters: the clusters, as in `GraphHash`.
        weights: the mixture of the table's ids over these clusters, or a mapping from table names to mixtures, or to
            None for a table whose ids read only their cluster.
        k: the number of rows to read, those with the largest weights.
        weight_bits: the bits of a stored weight, 1 to 8, relative to the heaviest of the id; a weight that is rounded
            to zero counts for nothing.
        seed: the seed of the hashes of unseen ids.

    Example:
        >>> import torch, embcomp
        >>> from embcomp.graph import ClusterMap, Mixture
        >>> clusters = ClusterMap.of([0, 0, 1], rows=2)
        >>> rows, weights = torch.tensor([[0, 1], [0, 1], [1, 0]]), torch.tensor([[3.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> method = embcomp.SoftGraphHash(clusters, weights=Mixture.of(rows, weights, clusters), k=2)
        >>> emb = embcomp.nn.CompressedEmbedding(3, 8, method)
        >>> emb.encoder(torch.tensor([0, 1]))[0].weights
        tensor([[0.7500, 0.2500],
                [1.0000, 0.0000]])
    """

    budget_settings: ClassVar[tuple[str, ...]] = (*GraphHash.budget_settings, "second_clusters")

    weights: Mixture | Mapping[str, Mixture | None] = field(repr=False)
    k: ReadCount = 4
    weight_bits: Annotated[int, Within(1, WHOLE, text="from 1 to 8")] = WHOLE

    def __post_init__(self) -> None:
        if self.hot is not None:
            raise ValueError(
                "SoftGraphHash: hot ids are part of the mixture: compute it from clusters.with_own_rows(ids)"
            )

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        return self.plan(tables, group).sizes

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        stores, plans = {}, []
        for table in tables:
            clusters, mixture = self._map(table), per_table(self.weights, table, "weights")
            if mixture is None:
                alone = super().plan([table], group)
                stores |= alone.stores
                plans += alone.tables
                continue
            agree = isinstance(mixture, Mixture) and [
                (m.num_ids, m.rows, m.unseen_rows, m.side, m.clustering) for m in (mixture, clusters)
            ]
            if not agree or agree[0] != agree[1]:
                raise ValueError(
                    f"table {table.name!r}: weights must be a Mixture over the same ids and clusters, got {mixture!r} "
                    f"for {clusters!r}"
                )
            mixture = mixture.first(self.k)
            stores[table.name] = Store(mixture.rows, table.embedding_dim)
            config = {**self._config(), "clusters": {"rows": mixture.rows, "unseen_rows": mixture.unseen_rows}}
            encoder = MixtureEncoder(table, {**config, "ids": mixture.num_ids}, self.seed, mixture, self.weight_bits)
            plans.append(TablePlan(table, encoder, (Chunk(table.name, mixture.k, weighted=True),), Concat()))
        return Plan(stores, plans)

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return the ladder of `GraphHash`; `embcomp.graph.mixture` also makes the mixtures from the edges.

        With `second_clusters="users"` (or "items") ids of that side read two clusters, those of
        `embcomp.graph.second_clusters`, and other ids read only their own cluster. With objective="balanced" and
        algorithm="label_propagation" as well, this is BACO.
        """
        return super().ladder(tables, nbytes, **fixed)

    @classmethod
    def _sizes(cls, table: Table, tables: Sequence[Table], rows: int, side: Side, **fixed: Any) -> Sizes:
        second, ids = fixed.get("second_clusters"), table.ids_or_raise("a budget of clusters")
        if second not in (None, side):
            return super()._sizes(table, tables, rows, side)
        k, bits = fixed.get("k", cls.k if second is None else 2), fixed.get("weight_bits", cls.weight_bits)
        weights = ids * k if bits == WHOLE else 4 * packed_words(ids * k, bits)
        maps = 4 * packed_words(ids * k, bits_for(rows)) + weights + KEY_BYTES
        return Sizes({table.name: Store(rows, table.embedding_dim)}, maps)

    @classmethod
    def _of(cls, found: Clusters, sides: Mapping[str, Side], edges: Edges, **fixed: Any) -> Self:
        from embcomp.graph.soft import mixture, second_clusters

        of_side: dict[Side, Mixture]
        if second := fixed.pop("second_clusters", None):
            of_side = {second: second_clusters(edges, found, second)}
            fixed.setdefault("k", 2)
        else:
            of_side = {side: mixture(edges, found, side, k=fixed.get("k", cls.k)) for side in set(sides.values())}
        clusters = {name: getattr(found, side) for name, side in sides.items()}
        return cls(clusters=clusters, weights={name: of_side.get(side) for name, side in sides.items()}, **fixed)
