"""FrequencyHash: the most frequent ids own rows, and the others share the remaining rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from embcomp.methods.base import (
    Chunk,
    Concat,
    Method,
    Plan,
    Rows,
    Sizes,
    Store,
    Table,
    TablePlan,
    check_counts,
    check_rows,
    per_table,
)
from embcomp.methods.hashing import HashEncoder
from embcomp.methods.together import Parts
from embcomp.ops.search import lower_bound
from embcomp.ops.together.hashing import frequent
from embcomp.settings import RowCount, Share


class FrequencyEncoder(HashEncoder):
    """An encoder in which a hot id reads the row of its rank in `hot_ids`, and other ids hash into the later rows."""

    hot_ids: Tensor

    def __init__(
        self, table: Table, config: Mapping[str, Any], seed: int, rows: int, lookups: int, counts: Tensor, hot: int
    ) -> None:
        hot_ids = _most_frequent(counts, hot)
        super().__init__(table, {**config, "hot": hot_ids.numel()}, seed, [rows - hot_ids.numel()], [lookups])
        self.register_buffer("hot_ids", hot_ids)

    def encode(self, ids: Tensor) -> list[Rows]:
        (shared,) = super().encode(ids)
        hot = self.hot_ids.numel()
        if hot == 0:
            return [Rows(shared.rows, torch.ones_like(shared.rows, dtype=torch.float32) if self._double else None)]
        narrow = ids.to(self.hot_ids.dtype).contiguous()  # else searchsorted warns
        hot_row = lower_bound(self.hot_ids, narrow).clamp(max=hot - 1)
        is_hot = (self.hot_ids[hot_row] == narrow).unsqueeze(-1)
        rows = torch.where(is_hot, hot_row.unsqueeze(-1), shared.rows + hot)
        if not self._double:
            return [Rows(rows)]
        # A hot id reads its row once: the second look-up repeats it with weight 0.
        weights = torch.ones_like(rows, dtype=torch.float32)
        weights[:, 1:].masked_fill_(is_hot, 0.0)
        return [Rows(rows, weights)]

    @classmethod
    def encode_together(cls, asked: Parts) -> Rows:
        ranges = [encoder.ranges[0] for encoder in asked.encoder_of]
        lookups = asked.encoder_of[0].lookups[0]
        return Rows(*frequent(asked.batch, asked.buffers("keys"), ranges, asked.buffers("hot_ids"), lookups))

    @property
    def _double(self) -> bool:
        return self.lookups[0] > 1


@dataclass(frozen=True, kw_only=True, eq=False)
class FrequencyHash(Method):
    """A method that gives the most frequent ids own rows, and hashes the others (Zhang et al. 2020, arXiv 2007.14523).

    The sorted list of frequent ids is stored with the table (4 bytes each, or 8 if ids exceed 2^31) and counted in its
    bytes.

    Args:
        rows: the number of all rows of the table, or a mapping from table names to such numbers.
        counts: the occurrences of each id in training, [num_embeddings], or a mapping from table names to such tensors.
            Ids with equal counts are ordered by id. Ids that never occur own no row.
        tail: "hash" to give each other id one hashed row, "double" to give it the sum of two.
        hot_share: the share of the rows that are owned.
        seed: the seed of the hashes; another seed gives other collisions.

    Example:
        >>> import torch, embcomp
        >>> counts = torch.tensor([5, 0, 90, 1, 40, 1])
        >>> emb = embcomp.nn.CompressedEmbedding(6, 8, embcomp.FrequencyHash(rows=4, counts=counts))
        >>> emb.encoder.hot_ids
        tensor([2, 4], dtype=torch.int32)
    """

    rows: RowCount | Mapping[str, RowCount]
    counts: Tensor | Mapping[str, Tensor] = field(repr=False)
    tail: Literal["hash", "double"] = "hash"
    hot_share: Share = 0.5
    seed: int = 0

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        stores, maps, lookups = {}, 0, self._lookups
        for table in tables:
            rows = check_rows(per_table(self.rows, table, "rows"), table.name)
            # The scale that suits the sum of two shared rows; an owned row starts a little smaller than a plain one.
            stores[table.name] = Store(rows, table.embedding_dim, summands=lookups)
            occurring = int((check_counts(per_table(self.counts, table, "counts"), table) > 0).sum())
            owned = min(self._owned(rows), occurring)
            maps += owned * _id_type(table.ids_or_raise("counts")).itemsize + lookups * HashEncoder.key_nbytes
        return Sizes(stores, maps)

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        stores, plans, lookups = dict(self.sizes(tables).stores), [], self._lookups
        for table in tables:
            rows = stores[table.name].rows
            counts = check_counts(per_table(self.counts, table, "counts"), table)
            hot = self._owned(rows)
            # The counts live on in the list of frequent ids, which is saved with the rows.
            config = {**self.config(without=["counts"]), "rows": rows}
            encoder = FrequencyEncoder(table, config, self.seed, rows, lookups, counts, hot)
            plans.append(TablePlan(table, encoder, (Chunk(table.name, lookups, weighted=lookups > 1),), Concat()))
        return Plan(stores, plans)

    def _owned(self, rows: int) -> int:
        """The maximum number of owned rows."""
        return min(int(rows * self.hot_share), rows - 1)

    @property
    def _lookups(self) -> int:
        return 2 if self.tail == "double" else 1


def _most_frequent(counts: Tensor, most: int) -> Tensor:
    """The `most` ids with the largest counts above zero, ascending, as int32 if they fit, else int64."""
    order = torch.argsort(counts, descending=True, stable=True)[: min(most, int((counts > 0).sum()))]
    return order.sort().values.to(_id_type(counts.numel()))


def _id_type(num_embeddings: int) -> torch.dtype:
    return torch.int32 if num_embeddings <= 2**31 else torch.int64
