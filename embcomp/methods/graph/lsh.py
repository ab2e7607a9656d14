"""LSHash: ids with similar features, or with similar interactions, share a row by locality-sensitive hashing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from embcomp import configs
from embcomp.graph.cluster_map import ClusterMap, Side
from embcomp.methods.base import (
    KEY_BYTES,
    Chunk,
    Concat,
    Method,
    Plan,
    Sizes,
    Store,
    Table,
    TablePlan,
    check_rows,
    per_table,
)
from embcomp.methods.graph.encoder import ClusterEncoder
from embcomp.ops.hashing import hash_key, hash_rows
from embcomp.ops.packing import bits_for, packed_words
from embcomp.settings import RowCount, Within, shown

if TYPE_CHECKING:
    from embcomp.graph.edges import Edges

configs.kind_at("Edges", "embcomp.graph.edges")

MAX_SIGNATURE = 62
_BLOCK = 8  # directions at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class LSHash(Method):
    """A method by which ids on the same side of random hyperplanes share a row (Charikar 2002); baseline of GraphHash.

    The signs of `bits` random projections are an id's signature, which is hashed into the rows. The packed map from ids
    to rows is stored and counted in the bytes. Ids without features (no interaction) are hashed by id.

    Args:
        rows: the number of rows of the table, or a mapping from table names to such numbers.
        features: the features of the ids, floats [num_embeddings, any width], dense or sparse; or (edges, side) for the
            weighted interactions of each id, which are never made dense; or a mapping from table names to either.
        bits: the number of hyperplanes; by default ceil(log2 rows) + 2, so that few rows stay empty.
        seed: the seed of the hyperplanes.

    Example:
        >>> import torch, embcomp
        >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.3]])
        >>> emb = embcomp.nn.CompressedEmbedding(3, 8, embcomp.LSHash(rows=50, features=features))
        >>> (rows,) = emb.encoder(torch.arange(3))
        >>> bool(rows.rows[0] == rows.rows[1]), bool(rows.rows[0] == rows.rows[2])
        (True, False)
    """

    rows: RowCount | Mapping[str, RowCount]
    features: Any = field(repr=False)
    bits: Annotated[int, Within(1, MAX_SIGNATURE)] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for features in self.features.values() if isinstance(self.features, Mapping) else [self.features]:
            pair = isinstance(features, tuple | list) and len(features) == 2 and hasattr(features[0], "ends")
            if not pair and not isinstance(features, Tensor):
                raise ValueError(
                    "LSHash: features must be a tensor of floats, or a pair (edges, side), or a mapping from names of "
                    f"tables to such, got {shown(features)}"
                )

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        stores, maps = {}, 0
        for table in tables:
            rows = check_rows(per_table(self.rows, table, "rows"), table.name)
            stores[table.name] = Store(rows, table.embedding_dim)
            known = _known(per_table(self.features, table, "features"), table)
            maps += 4 * packed_words(known.numel(), bits_for(rows + (not bool(known.all())))) + KEY_BYTES
        return Sizes(stores, maps)

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        stores, plans = dict(self.sizes(tables).stores), []
        for table in tables:
            rows = stores[table.name].rows
            features = per_table(self.features, table, "features")
            codes, known = signatures(features, table, self.bits or min(bits_for(rows) + 2, MAX_SIGNATURE), self.seed)
            row_of_id = hash_rows(codes, torch.tensor([hash_key(self.seed, "", 0)], device="cpu"), rows)[:, 0]
            cluster_map = ClusterMap.of(row_of_id.masked_fill(~known, -1), rows)
            config = {**self.config(without=["features"]), "rows": rows}  # the features live on in the map
            encoder = ClusterEncoder(table, config, self.seed, cluster_map)
            plans.append(TablePlan(table, encoder, (Chunk(table.name),), Concat()))
        return Plan(stores, plans)


def signatures(features: Any, table: Table, bits: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the signs of random projections as integers, int64 [num_embeddings], and the mask of ids with features."""
    known = _known(features, table)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.zeros(known.numel(), dtype=torch.int64, device="cpu")
    for start in range(0, bits, _BLOCK):
        width = min(_BLOCK, bits - start)
        above = _project(features, width, generator, known.numel()) > 0
        codes |= (above.long() << torch.arange(start, start + width, device="cpu")).sum(1)
    return codes, known


def _project(features: Any, width: int, generator: torch.Generator, n: int) -> Tensor:
    """Multiply features by random directions: floats [n, width]."""
    if isinstance(features, Tensor):
        directions = torch.randn(features.shape[1], width, generator=generator, dtype=torch.float32, device="cpu")
        return features.detach().cpu().to(torch.float32) @ directions
    ids, neighbours, weights, others = _ends(features)
    directions = torch.randn(others, width, generator=generator, dtype=torch.float32, device="cpu")
    each = directions[neighbours] if weights is None else directions[neighbours] * weights.unsqueeze(1)
    return torch.zeros(n, width, dtype=torch.float32, device="cpu").index_add_(0, ids, each)


def _known(features: Any, table: Table) -> Tensor:
    """Return the mask of ids with features. Raise ValueError if the features do not fit the table."""
    ids = table.ids_or_raise("LSHash")
    if isinstance(features, Tensor):
        if features.ndim != 2 or features.shape[0] != ids or not features.is_floating_point():
            raise ValueError(
                f"table {table.name!r}: features must be floats [{ids}, any width], got {features.dtype} "
                f"{list(features.shape)}"
            )
        values = features if features.layout == torch.strided else features.values()
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"table {table.name!r}: features are NaN or infinite")
        return torch.ones(ids, dtype=torch.bool, device="cpu")
    own = _ends(features)[0]
    edges, side = features
    if edges.num_ids(side) != ids:
        raise ValueError(f"table {table.name!r} has {ids} ids, the edges have {edges.num_ids(side)} {side}")
    return torch.zeros(ids, dtype=torch.bool, device="cpu").index_fill_(0, own, True)


def _ends(features: tuple[Edges, Side]) -> tuple[Tensor, Tensor, Tensor | None, int]:
    edges, side = features
    ids, neighbours = (torch.from_numpy(end).long() for end in edges.ends(side))
    weights = None if edges.weights is None else torch.from_numpy(edges.weights)
    return ids, neighbours, weights, edges.num_ids("items" if side == "users" else "users")
