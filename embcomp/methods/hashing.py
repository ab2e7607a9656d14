"""Hashed rows: the hashing trick, several hashes, and hash embeddings with learned importance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from embcomp.methods.apart import keep_apart
from embcomp.methods.base import (
    FLOAT_BYTES,
    Chunk,
    Concat,
    Encoder,
    Ladder,
    Method,
    Plan,
    Rows,
    Sizes,
    Store,
    Table,
    TablePlan,
    WeightedSum,
    check_rows,
    per_table,
    side_store,
)
from embcomp.methods.budget import share_rows
from embcomp.methods.together import Parts
from embcomp.ops.balanced import KEY_WORDS, Domain, balanced_key, balanced_rows
from embcomp.ops.hashed_features import Hashes
from embcomp.ops.hashing import MAX_ROWS, check_ids, hash_key, hash_rows, hash_rows_by_key
from embcomp.ops.together.hashing import balanced, hashed
from embcomp.settings import ReadCount, RowCount


class HashEncoder(Encoder):
    """An encoder in which chunk c reads `lookups[c]` hashed rows below `rows[c]`, each under its own key."""

    key_nbytes: ClassVar[int] = 8
    keys: Tensor
    _key = staticmethod(hash_key)

    def __init__(self, table: Table, config: Mapping[str, Any], seed: int, rows: Sequence[int], lookups: Sequence[int]):
        super().__init__(table, config)
        self.seed, self.ranges, self.lookups = seed, tuple(rows), tuple(lookups)
        self._one_each = len(set(self.ranges)) == 1 and set(self.lookups) == {1}
        self.register_buffer("keys", self._keys(), persistent=False)

    def _keys(self) -> Tensor:
        keys = [self._key(self.seed, self.table.name, j) for j in range(sum(self.lookups))]
        # Real even inside `with torch.device("meta")`: they follow from the configuration, so no state fills them.
        return torch.tensor(keys, device="cpu" if torch.get_default_device().type == "meta" else None)

    def reset_buffers(self) -> None:
        self.keys.copy_(self._keys())

    def packed(self, ids: Tensor, out: Tensor | None = None) -> Tensor:
        # A subclass may add to the hashed rows.
        if not self._in_one_pass() or ids.is_meta:
            return super().packed(ids, out)
        ids = check_ids(ids, self.table.num_embeddings, self.table.name)
        if not self._one_each:
            out_by_id = None if out is None else out.view(ids.numel(), len(self.keys))
            return self._by_id(ids, self.keys, self.ranges[0], out_by_id).reshape(-1)
        out_by_key = None if out is None else out.view(len(self.keys), ids.numel())
        return self._by_key(ids, self.keys, self.ranges[0], out_by_key).reshape(-1)

    def hashes(self) -> Hashes | None:
        """Return how the ids of several features may be hashed by one call; None if `packed` does something else."""
        own = type(self)
        alike = (own._by_key, own._by_id, own.packed) == (HashEncoder._by_key, HashEncoder._by_id, HashEncoder.packed)
        if not alike or not self._in_one_pass():
            return None
        return Hashes(self.keys, self.ranges[0], self.table.num_embeddings, self._one_each)

    def _in_one_pass(self) -> bool:
        return (self._one_each or len(self.lookups) == 1) and type(self).encode is HashEncoder.encode

    def encode(self, ids: Tensor) -> list[Rows]:
        if self._one_each:  # chunks of one store: one pass over the ids
            return [Rows(rows.unsqueeze(-1)) for rows in self._by_key(ids, self.keys, self.ranges[0])]
        keys = self.keys.split(self.lookups)
        return [Rows(self._by_id(ids, key, rows)) for key, rows in zip(keys, self.ranges, strict=True)]

    def lookups_of(self, chunk: int) -> int:
        return self.lookups[chunk]

    @classmethod
    def encode_together(cls, asked: Parts) -> Rows:
        """Encode the ids of several encoders at once (`embcomp.methods.together`)."""
        ranges = [encoder.ranges[chunk] for encoder, chunk in asked.parts]
        lookups = asked.encoder_of[0].lookups_of(asked.chunks[0])
        return Rows(hashed(asked.batch, asked.buffers("keys"), _first_keys(asked), ranges, lookups))

    def _by_key(self, ids: Tensor, keys: Tensor, rows: int, out: Tensor | None = None) -> Tensor:
        """Return rows [number of keys, number of ids]."""
        return hash_rows_by_key(ids, keys, rows, out)

    def _by_id(self, ids: Tensor, keys: Tensor, rows: int, out: Tensor | None = None) -> Tensor:
        """Return rows [number of ids, number of keys]."""
        return hash_rows(ids, keys, rows, out)


class BalancedHashEncoder(HashEncoder):
    """A `HashEncoder` that permutes a closed id space, so that rows are shared evenly (`embcomp.ops.balanced`)."""

    key_nbytes = 8 * KEY_WORDS
    _key = staticmethod(balanced_key)

    def __init__(self, table: Table, config: Mapping[str, Any], seed: int, rows: Sequence[int], lookups: Sequence[int]):
        self.num_ids = table.ids_or_raise("balanced=True")
        super().__init__(table, config, seed, rows, lookups)

    def hashes(self) -> Hashes | None:
        own = type(self)
        alike = (own._by_key, own.packed) == (BalancedHashEncoder._by_key, HashEncoder.packed)
        if not alike or not self._one_each or not self._in_one_pass():
            return None
        domain = Domain.of(self.num_ids, self.ranges[0])
        return Hashes(self.keys, self.ranges[0], self.table.num_embeddings, domain=domain)

    @classmethod
    def encode_together(cls, asked: Parts) -> Rows:
        domains = [Domain.of(encoder.num_ids, encoder.ranges[chunk]) for encoder, chunk in asked.parts]
        lookups = asked.encoder_of[0].lookups_of(asked.chunks[0])
        return Rows(balanced(asked.batch, asked.buffers("keys"), _first_keys(asked), domains, lookups))

    def _by_key(self, ids: Tensor, keys: Tensor, rows: int, out: Tensor | None = None) -> Tensor:
        return balanced_rows(ids, keys, self.num_ids, rows, out)

    def _by_id(self, ids: Tensor, keys: Tensor, rows: int, out: Tensor | None = None) -> Tensor:
        found = balanced_rows(ids, keys, self.num_ids, rows).t()
        return found if out is None else out.copy_(found)


def _first_keys(asked: Parts) -> list[int]:
    """The position of each part's first key among those of its encoder."""
    return [sum(encoder.lookups[:chunk]) for encoder, chunk in asked.parts]


def hash_encoder(balanced: bool) -> type[HashEncoder]:
    """Return the encoder class for a method's setting `balanced`."""
    return BalancedHashEncoder if balanced else HashEncoder


@dataclass(frozen=True, kw_only=True, eq=False)
class HashingTrick(Method):
    """A method with one table of `rows` vectors, read at the hash of an id (Weinberger et al. 2009, arXiv 0902.2206).

    Args:
        rows: the number of rows of the table, or a mapping from table names to such numbers.
        seed: the seed of the hash; another seed gives other collisions.
        balanced: True to permute the ids of a table instead of hashing them, so that the rows are shared as evenly as
            possible (docs/hashing.md); needs `num_embeddings`.

    Example:
        >>> import torch, embcomp
        >>> emb = embcomp.nn.CompressedEmbedding(1_000_000, 16, embcomp.HashingTrick(rows=10_000))
        >>> emb(torch.tensor([3, 999_999])).shape, embcomp.nbytes(emb)
        (torch.Size([2, 16]), 640008)
    """

    rows: RowCount | Mapping[str, RowCount]
    seed: int = 0
    balanced: bool = False

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        rows = {table: check_rows(per_table(self.rows, table, "rows"), table.name) for table in tables}
        stores = {table.name: Store(size, table.embedding_dim) for table, size in rows.items()}
        return Sizes(stores, len(tables) * hash_encoder(self.balanced).key_nbytes)

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        stores, plans = dict(self.sizes(tables).stores), []
        for table in tables:
            rows = stores[table.name].rows
            config = {**self.config(), "rows": rows}
            encoder = hash_encoder(self.balanced)(table, config, self.seed, [rows], [1])
            plans.append(TablePlan(table, encoder, (Chunk(table.name),), Concat()))
        return Plan(stores, plans)


@dataclass(frozen=True, kw_only=True, eq=False)
class MultiHash(Method):
    """A method that adds or concatenates several rows per id (Serra & Karatzoglou 2017, arXiv 1706.03993).

    Two ids have the same vector only if all their hashes agree.

    Args:
        rows: the number of rows of the table, or a mapping from table names to such numbers. With "concat" a row is
            embedding_dim / num_hashes wide.
        num_hashes: the number of look-ups per id.
        combine: "sum" to add the rows, "concat" to put them side by side.
        seed: the seed of the hashes; another seed gives other collisions. `for_budget` takes the first one from this on
            that gives ids of small tables different rows.
        balanced: True to permute the ids of a table instead of hashing them, so that the rows are shared as evenly as
            possible (docs/hashing.md); needs `num_embeddings`.

    Example:
        >>> import torch, embcomp
        >>> method = embcomp.MultiHash(rows=1000, num_hashes=4, combine="concat")
        >>> emb = embcomp.nn.CompressedEmbedding(100_000, 64, method)
        >>> emb(torch.tensor([5])).shape, embcomp.nbytes(emb)
        (torch.Size([1, 64]), 64032)
    """

    rows: RowCount | Mapping[str, RowCount]
    num_hashes: ReadCount = 2
    combine: Literal["sum", "concat"] = "sum"
    seed: int = 0
    balanced: bool = False

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        stores, k = {}, self.num_hashes
        for table in tables:
            rows, dim = check_rows(per_table(self.rows, table, "rows"), table.name), table.embedding_dim
            if self.combine == "concat" and dim % k:
                raise ValueError(
                    f"table {table.name!r}: embedding_dim {dim} is not a multiple of num_hashes {k}; choose another "
                    "num_hashes, or combine='sum'"
                )
            stores[table.name] = Store(rows, dim, summands=k) if self.combine == "sum" else Store(rows, dim // k)
        return Sizes(stores, len(tables) * k * hash_encoder(self.balanced).key_nbytes)

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        stores, plans, k = dict(self.sizes(tables).stores), [], self.num_hashes
        lookups = [k] if self.combine == "sum" else [1] * k
        for table in tables:
            rows = stores[table.name].rows
            config = {**self.config(), "rows": rows}
            encoder = hash_encoder(self.balanced)(table, config, self.seed, [rows] * len(lookups), lookups)
            plans.append(TablePlan(table, encoder, tuple(Chunk(table.name, n) for n in lookups), Concat()))
        return Plan(stores, plans)

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return the usual ladder; permutations come with a seed that keeps the ids of small tables apart."""
        usual = super().ladder(tables, nbytes, **fixed)

        def make(size: int) -> Self:
            method = usual.make(size)
            return keep_apart(method, tables, in_order=method.combine == "concat") if method.balanced else method

        return replace(usual, make=make)


@dataclass(frozen=True, kw_only=True, eq=False)
class DoubleHash(MultiHash):
    """The method `MultiHash(num_hashes=2, combine="sum")`: two summed hashes (Zhang et al. 2020, arXiv 2007.14523).

    Example:
        >>> import embcomp
        >>> embcomp.DoubleHash(rows=1000).num_hashes
        2
    """


@dataclass(frozen=True, kw_only=True, eq=False)
class HashEmbedding(Method):
    """A method with learned importance of rows: e(id) = sum_j p_j(id) E[h_j(id)] (Svenstrup et al. 2017, eq. 1-2).

    The importance weights p are trained with the rows. They start at 1, where the method equals `MultiHash`.

    Args:
        rows: the number of rows of the table, or a mapping from table names to such numbers.
        num_hashes: the number of look-ups per id.
        importance_rows: the rows of the importance table, or a mapping from table names to rows, read by one more hash.
            By default every id has its own row, which needs `num_embeddings`. A row holds num_hashes weights, padded to
            a multiple of 4 floats (required by FBGEMM).
        seed: the seed of the hashes; another seed gives other collisions.

    Example:
        >>> import torch, embcomp
        >>> emb = embcomp.nn.CompressedEmbedding(1000, 16, embcomp.HashEmbedding(rows=50))
        >>> embcomp.nbytes(emb) == 4 * (50 * 16 + 1000 * 4) + 8 * 3
        True
    """

    rows: RowCount | Mapping[str, RowCount]
    num_hashes: ReadCount = 2
    importance_rows: RowCount | Mapping[str, RowCount] | None = None
    seed: int = 0

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        stores, k = {}, self.num_hashes
        for table in tables:
            rows = check_rows(per_table(self.rows, table, "rows"), table.name)
            importance = per_table(self.importance_rows, table, "importance_rows")
            own = importance is None
            importance = table.ids_or_raise("one importance per id") if own else check_rows(importance, table.name)
            stores[side_store(table, "importance", tables)] = Store(importance, _padded(k), init="ones")
            stores[table.name] = Store(rows, table.embedding_dim, summands=k)
        return Sizes(stores, len(tables) * (k + 1) * HashEncoder.key_nbytes)

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        stores, plans, k = dict(self.sizes(tables).stores), [], self.num_hashes
        for table in tables:
            weights, own = side_store(table, "importance", tables), self.importance_rows is None
            rows, importance = stores[table.name].rows, stores[weights].rows
            config = {**self.config(), "rows": rows, "importance_rows": importance}
            encoder = _HashEmbeddingEncoder(table, config, self.seed, rows, k, None if own else importance)
            plans.append(TablePlan(table, encoder, (Chunk(weights), *[Chunk(table.name)] * k), WeightedSum()))
        return Plan(stores, plans)

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return the usual ladder, but hash the importance if one per id would take more than half of the budget.

        It is hashed, too, if one per id leaves no bytes for a row.

        The hashed importance table has as many rows as the main table, unless `importance_rows` is given.
        """
        ids = sum((table.num_embeddings or nbytes) for table in tables)
        own = ids * _padded(fixed.get("num_hashes", cls.num_hashes)) * FLOAT_BYTES
        hashed = "importance_rows" not in fixed and (
            2 * own > nbytes or cls(rows=share_rows(tables, 1), **fixed).sizes(tables).nbytes() > nbytes
        )

        def make(size: int) -> Self:
            rows = share_rows(tables, size)
            importance: dict[str, Any] = {"importance_rows": rows} if hashed else {}
            return cls(rows=rows, **fixed, **importance)

        return Ladder(make, lambda size: make(size).sizes(tables), most=MAX_ROWS * len(tables))


def _padded(num_hashes: int) -> int:
    """The columns of an importance row: num_hashes rounded up to a multiple of 4, which FBGEMM requires."""
    return -(-num_hashes // 4) * 4


class _HashEmbeddingEncoder(HashEncoder):
    """An encoder of the importance row (the id itself, or its hash under the last key), then one row for each hash."""

    def __init__(
        self, table: Table, config: Mapping[str, Any], seed: int, rows: int, k: int, importance_rows: int | None
    ):
        super().__init__(table, config, seed, [rows] * k + [importance_rows or 1], [1] * (k + 1))
        self.own_importance = importance_rows is None

    def encode(self, ids: Tensor) -> list[Rows]:
        *values, importance = super().encode(ids)
        return [Rows(ids.unsqueeze(-1)) if self.own_importance else importance, *values]

    @classmethod
    def encode_together(cls, asked: Parts) -> Rows:
        # The importance comes first, but its key is the last.
        own_keys = [len(encoder.keys) - 1 if chunk == 0 else chunk - 1 for encoder, chunk in asked.parts]
        ranges = [
            0 if chunk == 0 and encoder.own_importance else encoder.ranges[key]
            for (encoder, chunk), key in zip(asked.parts, own_keys, strict=True)
        ]
        return Rows(hashed(asked.batch, asked.buffers("keys"), own_keys, ranges, 1))
