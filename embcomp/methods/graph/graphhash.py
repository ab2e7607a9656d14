"""GraphHash: ids that are clicked together share a row, alone or plus a hashed row."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self
from weakref import WeakKeyDictionary

import torch

from embcomp.graph.cluster_map import ClusterMap, Side, check_side
from embcomp.methods.base import (
    KEY_BYTES,
    Chunk,
    Concat,
    Ladder,
    Method,
    Plan,
    Sizes,
    Store,
    Sum,
    Table,
    TablePlan,
    check_rows,
    per_table,
    side_store,
)
from embcomp.methods.graph.encoder import ClusterEncoder
from embcomp.ops.packing import bits_for, packed_words
from embcomp.settings import Ids, RowCount

if TYPE_CHECKING:
    from embcomp.graph.clustering import Clusters
    from embcomp.graph.edges import Edges


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphHash(Method):
    """A method by which ids that are clicked together share a row: that of their cluster (Wu et al., arXiv 2412.17245).

    The packed map is stored with the table and counted in its bytes: ceil(log2 rows) bits for each id. Ids without a
    cluster are hashed. The rows are those of the clustering, so with given `clusters` there is one size for
    `for_budget`; with `edges` instead it makes as many clusters as fit into the budget (Wu et al. 2024).

    Args:
        clusters: the map of the table's ids (`embcomp.graph.cluster(...).users` or `.items`), or a mapping from table
            names to maps.
        hot: the ids that also get rows of their own (`edges.most_frequent`), or a mapping from table names to them. The
            map encodes this, so no list is stored.
        seed: the seed of the hashes of unseen ids.

    Raises:
        ValueError: the table has another number of ids than the map (raised when a plan is made).

    Example:
        >>> import torch, embcomp
        >>> from embcomp.graph import ClusterMap
        >>> clusters = ClusterMap.of([0, 0, 1, 2, 2], rows=3)
        >>> emb = embcomp.nn.CompressedEmbedding(5, 8, embcomp.GraphHash(clusters))
        >>> bool((emb(torch.tensor(0)) == emb(torch.tensor(1))).all()), emb.encoder(torch.arange(5))[0].rows.tolist()
        (True, [[0], [0], [1], [2], [2]])
    """

    budget_settings: ClassVar[tuple[str, ...]] = ("objective", "algorithm", "backend", "unseen_rows")

    clusters: ClusterMap | Mapping[str, ClusterMap] = field(repr=False, kw_only=False)
    hot: Ids | Mapping[str, Ids] | None = field(default=None, repr=False)
    seed: int = 0

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        maps = {table.name: self._map(table) for table in tables}
        stores = {table.name: Store(maps[table.name].rows, table.embedding_dim) for table in tables}
        return Sizes(stores, _nbytes(maps.values(), keys=1))

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        stores, plans = {}, []
        for table in tables:
            cluster_map = self._map(table)
            stores[table.name] = Store(cluster_map.rows, table.embedding_dim)
            encoder = ClusterEncoder(table, self._config(), self.seed, cluster_map)
            plans.append(TablePlan(table, encoder, (Chunk(table.name),), Concat()))
        return Plan(stores, plans)

    def _map(self, table: Table) -> ClusterMap:
        """The checked map of the table, with the hot ids on rows of their own."""
        cluster_map = per_table(self.clusters, table, "clusters")
        if table.num_embeddings not in (None, cluster_map.num_ids):
            raise ValueError(
                f"table {table.name!r} has {table.num_embeddings} ids, but the map of {cluster_map.side} has "
                f"{cluster_map.num_ids}: is it another table's? Give num_users and num_items to `interactions`, or "
                "extend the map"
            )
        hot = None if self.hot is None else per_table(self.hot, table, "hot")
        return cluster_map if hot is None else cluster_map.with_own_rows(hot)

    def _config(self) -> dict[str, Any]:
        """The configuration without the settings whose content is in the map."""
        return self.config(without=["clusters", "hot", "weights"])

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return a ladder with the one size of given `clusters`, or with clusterings of given `edges` by their rows.

        Args:
            tables: the tables to compress together.
            nbytes: the budget in bytes.
            fixed: settings to keep. `clusters` may be replaced by `edges` and `sides`, a mapping from table names to
                "users" or "items"; then `objective`, `algorithm`, `backend` and `unseen_rows` are passed to `cluster`.
                If both sides are compressed, each gets half of the rows, since a cluster holds ids of both; a side with
                fewer ids gets fewer.
        """
        if "edges" in fixed:
            return cls._of_edges(tables, **fixed)
        return Ladder(lambda size: cls(**fixed), lambda size: cls(**fixed).sizes(tables), most=1)

    @classmethod
    def _of_edges(
        cls, tables: Sequence[Table], *, edges: Edges, sides: Mapping[str, Side], **fixed: Any
    ) -> Ladder[Self]:
        settings = {key: fixed.pop(key) for key in GraphHash.budget_settings if key in fixed}
        side_of = {table.name: per_table(sides, table, "sides") for table in tables}
        for side in side_of.values():
            check_side(side)
        ids = {side: int((edges.degrees(side) > 0).sum()) for side in ("users", "items")}

        def rows_of(total: int) -> tuple[int, int]:
            asked = [side for side in ("users", "items") if side in side_of.values()]
            rows = {side: min(-(-total // len(asked)), ids[side]) for side in asked}
            if len(asked) == 2:  # what one side cannot use is the other's
                rows["items"] = min(total - rows["users"], ids["items"]) or 1
                rows["users"] = min(total - rows["items"], ids["users"])
            other = next(iter(rows.values()))
            return (rows.get("users", min(other, ids["users"])), rows.get("items", min(other, ids["items"])))

        def price(total: int) -> Sizes:  # of the most that so many clusters take, without looking for them
            rows = dict(zip(("users", "items"), rows_of(total), strict=True))
            sides = [(table, side_of[table.name]) for table in tables]
            parts = [cls._sizes(table, tables, rows[side], side, **fixed) for table, side in sides]
            stores = {name: store for sizes in parts for name, store in sizes.stores.items()}
            return Sizes(stores, sum(sizes.maps for sizes in parts))

        def make(total: int) -> Self:
            clusters = _clusters(edges, rows_of(total), seed=fixed.get("seed", 0), **settings)
            return cls._of(clusters, side_of, edges, **fixed)

        return Ladder(make, price, least=len(set(side_of.values())), most=sum(ids.values()))

    @classmethod
    def _sizes(cls, table: Table, tables: Sequence[Table], rows: int, side: Side, **fixed: Any) -> Sizes:
        """The largest sizes of a table with this many cluster rows: rows, rows of hot ids, map and keys."""
        ids = table.ids_or_raise("a budget of clusters")
        if fixed.get("hot") is not None:
            rows += torch.as_tensor(per_table(fixed["hot"], table, "hot")).unique().numel()
        maps = 4 * packed_words(ids, bits_for(rows + 1)) + KEY_BYTES
        return Sizes({table.name: Store(rows, table.embedding_dim)}, maps)

    @classmethod
    def _of(cls, found: Clusters, sides: Mapping[str, Side], edges: Edges, **fixed: Any) -> Self:
        return cls(clusters={name: getattr(found, side) for name, side in sides.items()}, **fixed)


@dataclass(frozen=True, kw_only=True, eq=False)
class DoubleGraphHash(GraphHash):
    """A method that adds a hashed row to the row of the cluster, to tell its ids apart (arXiv 2412.17245, section 3.3).

    Args:
        clusters: the clusters, as in `GraphHash`.
        hot: the ids with their own rows, as in `GraphHash`.
        second: "shared" to hash into the rows of the clusters, as in the paper; "own" to hash into a second table,
            where a hashed row does not disturb the clusters.
        rows: with second="own", the rows of the second table, or a mapping from table names to rows.
        seed: the seed of the hashes.

    Example:
        >>> import torch, embcomp
        >>> from embcomp.graph import ClusterMap
        >>> clusters = ClusterMap.of([0, 0, 1, 2, 2], rows=3)
        >>> emb = embcomp.nn.CompressedEmbedding(5, 8, embcomp.DoubleGraphHash(clusters, second="own", rows=4))
        >>> [store.weight.shape[0] for store in emb.stores], emb(torch.tensor([0, 1])).shape
        ([3, 4], torch.Size([2, 8]))
    """

    second: Literal["shared", "own"] = "shared"
    rows: RowCount | Mapping[str, RowCount] | None = None

    def __post_init__(self) -> None:
        if (self.second == "own") != (self.rows is not None):
            raise ValueError(f"DoubleGraphHash: second={self.second!r} with rows={self.rows}; rows are those of 'own'")

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        maps = {table.name: self._map(table) for table in tables}
        stores = {}
        for table in tables:
            for name, rows in self._rows(table, tables, maps[table.name]).items():
                stores[name] = Store(rows, table.embedding_dim, summands=2)
        return Sizes(stores, _nbytes(maps.values(), keys=2))

    def _rows(self, table: Table, tables: Sequence[Table], found: ClusterMap) -> dict[str, int]:
        """The rows of the stores of a table by name; its hashed rows are in the last one."""
        rows = {table.name: found.rows}
        if self.second == "own":
            own = side_store(table, "second", tables)
            rows[own] = check_rows(per_table(self.rows, table, "rows"), table.name)
        return rows

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        stores, plans = {}, []
        for table in tables:
            cluster_map = self._map(table)
            sizes = self._rows(table, tables, cluster_map)
            stores |= {name: Store(size, table.embedding_dim, summands=2) for name, size in sizes.items()}
            second, rows = list(sizes.items())[-1]
            config = {**self._config(), "rows": rows}
            encoder = ClusterEncoder(table, config, self.seed, cluster_map, hashes=[rows])
            plans.append(TablePlan(table, encoder, (Chunk(table.name), Chunk(second)), Sum()))
        return Plan(stores, plans)

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return the ladder of `GraphHash`; for second="own" with given `clusters` the size is the second table's.

        With `edges` and second="own" the second table gets as many rows as the first.
        """
        if fixed.get("second") == "own" and "rows" not in fixed and "edges" not in fixed:
            return super(GraphHash, cls).ladder(tables, nbytes, **fixed)
        return super().ladder(tables, nbytes, **fixed)

    @classmethod
    def _sizes(cls, table: Table, tables: Sequence[Table], rows: int, side: Side, **fixed: Any) -> Sizes:
        first = super()._sizes(table, tables, rows, side, **fixed)
        if fixed.get("second") != "own":
            return Sizes(first.stores, first.maps + KEY_BYTES)
        more = rows if fixed.get("rows") is None else per_table(fixed["rows"], table, "rows")
        second = {side_store(table, "second", tables): Store(more, table.embedding_dim)}
        return Sizes({**first.stores, **second}, first.maps + KEY_BYTES)

    @classmethod
    def _of(cls, found: Clusters, sides: Mapping[str, Side], edges: Edges, **fixed: Any) -> Self:
        if fixed.get("second") == "own" and fixed.get("rows") is None:
            fixed["rows"] = {name: getattr(found, side).rows for name, side in sides.items()}
        return super()._of(found, sides, edges, **fixed)


def _nbytes(maps: Iterable[ClusterMap], keys: int) -> int:
    """The bytes of maps, those that tables share once, and of so many keys for each table."""
    words = [found.words for found in maps]
    return sum({id(each): each.nbytes for each in words}.values()) + keys * KEY_BYTES * len(words)


_FOUND: WeakKeyDictionary[Edges, dict[Hashable, Clusters]] = WeakKeyDictionary()


def _clusters(edges: Edges, rows: tuple[int, int], **settings: Any) -> Clusters:
    """Return the clusters of a graph, which are sought once: several methods of one size ask for the same."""
    from embcomp.graph.clustering import cluster

    known, key = _FOUND.setdefault(edges, {}), (rows, *sorted(settings.items()))
    if key not in known:
        known[key] = cluster(edges, rows, **settings)
    return copy.deepcopy(known[key])  # a model that loads a state writes into its maps
