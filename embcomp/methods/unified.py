"""UnifiedEmbedding: one table that all features read (feature multiplexing)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from embcomp.methods.base import (
    FLOAT_BYTES,
    Chunk,
    Concat,
    Ladder,
    Method,
    Plan,
    Sizes,
    Store,
    Table,
    TablePlan,
    check_rows,
)
from embcomp.methods.budget import can_balance
from embcomp.methods.hashing import hash_encoder
from embcomp.settings import MAX_READS, ReadCount, RowCount, Width


@dataclass(frozen=True, kw_only=True, eq=False)
class UnifiedEmbedding(Method):
    """A method by which all tables of one instance read one store (Coleman et al. 2023, arXiv 2305.12102).

    Chunk c of feature f for value v is E[h_{f,c}(v)], with a separate hash key for each (feature, chunk); the embedding
    is the concatenation of the chunks. Collisions between features cancel, because the model reads each feature through
    its own first-layer weights, which training makes orthogonal (feature multiplexing).

    Args:
        rows: the number of rows of the shared store.
        chunk_dim: the width of a row.
        lookups: the number of look-ups by table name; such a table becomes lookups[name] * chunk_dim wide. Other tables
            read embedding_dim / chunk_dim chunks.
        seed: the seed of the hashes; another seed gives other collisions.
        balanced: True to permute the ids of a table instead of hashing them, so that the ids of one table share rows as
            evenly as possible, and do not share at all if there are enough rows. Collisions inside a feature cost the
            most quality (docs/hashing.md). Needs `num_embeddings`.

    Example:
        >>> import embcomp
        >>> tables = [embcomp.Table("user", 6040, 32), embcomp.Table("film", 3706, 32)]
        >>> plan = embcomp.UnifiedEmbedding(rows=2000, chunk_dim=16).plan(tables)
        >>> [(store.rows, store.dim) for store in plan.stores.values()], len(plan.tables[0].chunks)
        ([(2000, 16)], 2)
    """

    shares_store: ClassVar[bool] = True

    rows: RowCount
    chunk_dim: Width
    lookups: Mapping[str, ReadCount] | None = None
    seed: int = 0
    balanced: bool = False

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        unknown = set(self.lookups or {}) - {table.name for table in tables}
        if unknown:
            raise ValueError(f"UnifiedEmbedding: lookups names {sorted(unknown)}, which are not among its tables")
        store = Store(check_rows(self.rows, group), self.chunk_dim)
        return Sizes({group: store}, sum(map(self._chunks, tables)) * hash_encoder(self.balanced).key_nbytes)

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        stores, plans = dict(self.sizes(tables, group).stores), []
        for table in tables:
            chunks = self._chunks(table)
            encoder = hash_encoder(self.balanced)(table, self.config(), self.seed, [self.rows] * chunks, [1] * chunks)
            plans.append(TablePlan(table, encoder, (Chunk(group),) * chunks, Concat()))
        return Plan(stores, plans)

    def _chunks(self, table: Table) -> int:
        if self.lookups and table.name in self.lookups:
            return self.lookups[table.name]
        if table.embedding_dim % self.chunk_dim:
            raise ValueError(
                f"table {table.name!r}: embedding_dim {table.embedding_dim} is not a multiple of chunk_dim "
                f"{self.chunk_dim}; choose a divisor, or set lookups[{table.name!r}]"
            )
        chunks = table.embedding_dim // self.chunk_dim
        if chunks > MAX_READS:
            raise ValueError(
                f"table {table.name!r}: chunk_dim {self.chunk_dim} cuts embedding_dim {table.embedding_dim} into "
                f"{chunks} look-ups, the most are {MAX_READS}; choose a larger one"
            )
        return chunks

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return a ladder over the rows of the store; without `chunk_dim`, `best_chunk_dim` chooses it."""
        fixed = {"balanced": can_balance(tables), **fixed}
        if "chunk_dim" not in fixed:
            fixed["chunk_dim"] = best_chunk_dim(tables, nbytes, balanced=fixed["balanced"])
        return Ladder(lambda rows: cls(rows=rows, **fixed), lambda rows: cls(rows=rows, **fixed).sizes(tables))


def best_chunk_dim(tables: Sequence[Table], nbytes: int, *, balanced: bool = False) -> int:
    """Choose the chunk width for a budget: the tighter the budget, the more look-ups, so that few ids share all rows.

    2 + log2(full bytes / budget) look-ups, that is 2, 3 and 5 at 100 %, 50 % and 10 % of the full bytes, come within
    .0011 AUC of the best of 1, 2, 3 and 5 on MovieLens-1M (the experiment `unified-ml1m`); more look-ups cost more
    reads. With `balanced`, one look-up is enough at 100 %, and each further one adds collisions between features: 1 +
    2/3 log2(...), that is 1, 2 and 3. The result is the nearest divisor of the widths, a multiple of 4 if the widths
    allow it (required by FBGEMM). An open id space counts as one row per byte.

    Example:
        >>> tables = [Table("user", 6040, 32), Table("film", 3706, 32)]
        >>> best_chunk_dim(tables, nbytes=1_247_488), best_chunk_dim(tables, nbytes=124_748)
        (16, 8)
    """
    if not tables:
        raise ValueError("UnifiedEmbedding: a budget needs at least one table, got none")
    width = math.gcd(*[table.embedding_dim for table in tables])
    full = sum((table.num_embeddings or nbytes) * table.embedding_dim * FLOAT_BYTES for table in tables)
    smaller = math.log2(max(1.0, full / max(1, nbytes)))
    wanted = 1 + smaller * 2 / 3 if balanced else 2 + smaller
    step = 4 if width % 4 == 0 else 1
    chunks = [dim for dim in range(step, width + 1, step) if width % dim == 0]
    total, key = sum(table.embedding_dim for table in tables), 64 if balanced else 8
    payable = [dim for dim in chunks if total // dim * key + dim * FLOAT_BYTES <= nbytes]  # keys, and a row
    chunks = payable or chunks
    return min(chunks, key=lambda dim: (abs(math.log(width / dim / wanted)), -dim))
