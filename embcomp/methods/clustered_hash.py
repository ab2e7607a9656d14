"""A method with two rows of small tables for each chunk of a vector, one of them a cluster's after `recluster_`."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

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
    check_rows,
    per_table,
)
from embcomp.methods.hashing import HashEncoder
from embcomp.methods.together import Parts
from embcomp.ops.hashing import hash_rows
from embcomp.ops.packing import bits_for, pack, packed_words, unpack
from embcomp.ops.together.maps import two_rows
from embcomp.settings import ReadCount, RowCount

_ROUND_BYTES = 8


class ClusteredEncoder(HashEncoder):
    """An encoder of two rows for each chunk: the first from a packed map, the second by a hash.

    Rows 2 c k to 2 c k + k - 1 of the store are the first table of chunk c, the next k its second.

    Attributes:
        words: the packed map, with `chunks` entries for each id; a hash at first.
        round: the number of clusterings so far, int64 [1], from which the second hash follows.
    """

    words: Tensor
    round: Tensor

    def __init__(self, table: Table, config: Mapping[str, Any], seed: int, rows: int, chunks: int) -> None:
        super().__init__(table, config, seed, [rows] * chunks, [1] * chunks)
        self.rows, self.chunks, self.bits = rows, chunks, bits_for(rows)
        real = self.keys.device
        self.register_buffer("round", torch.zeros(1, dtype=torch.int64, device=real))
        keys = [self._key(seed, table.name, chunk) for chunk in range(chunks)]
        with torch.device("cpu"):
            ids = torch.arange(table.ids_or_raise("ClusteredHash"))
            self.register_buffer("words", pack(hash_rows(ids, torch.tensor(keys), rows), self.bits).to(real))

    def _keys(self) -> Tensor:
        chunks = sum(self.lookups)
        first = chunks * (1 + (int(self.round) if "round" in self._buffers else 0))
        keys = [self._key(self.seed, self.table.name, first + chunk) for chunk in range(chunks)]
        return torch.tensor(keys, device="cpu" if torch.get_default_device().type == "meta" else None)

    def set_map(self, clusters: Tensor) -> None:
        """Set the first rows, int64 [num_embeddings, chunks], and draw the second hash again."""
        self.words = pack(clusters.cpu(), self.bits).to(self.words.device)
        self.round += 1
        self.reset_buffers()

    def with_map(self, clusters: Tensor) -> "ClusteredEncoder":
        """Return a copy with another map; see `set_map`."""
        twin = copy.deepcopy(self)
        twin.set_map(clusters)
        return twin

    def encode(self, ids: Tensor) -> list[Rows]:
        first = unpack(self.words, self.bits, ids, self.chunks).view(-1, self.chunks)
        second = hash_rows(ids, self.keys, self.rows) + self.rows
        start = torch.arange(self.chunks, device=ids.device) * (2 * self.rows)
        return [Rows(rows) for rows in (torch.stack([first, second], -1) + start.unsqueeze(1)).unbind(1)]

    def lookups_of(self, chunk: int) -> int:
        return 2

    @classmethod
    def encode_together(cls, asked: Parts) -> Rows:
        """Return the rows of several encoders (`embcomp.methods.together`)."""
        rows = two_rows(
            asked.batch,
            words=asked.buffers("words"),
            bits=[encoder.bits for encoder in asked.encoder_of],
            chunks=[encoder.chunks for encoder in asked.encoder_of],
            chunk=asked.chunks,
            keys=asked.buffers("keys"),
            rows=[encoder.rows for encoder in asked.encoder_of],
        )
        return Rows(rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClusteredHash(Method):
    """Sums of two rows side by side, one of them a cluster's (CCE, Tsang and Ahle 2023, arXiv 2310.17485, section 3).

    Chunk c of a vector is T_c[h_c(id)] + T'_c[h'_c(id)]. Both hashes are random at first. Between epochs,
    `embcomp.recluster_` runs k-means over the vectors of the ids: h_c(id) becomes the cluster, T_c the centroids, h'_c
    another random hash, and T'_c the mean of the residuals. The map h is stored and counted from the start.

    Args:
        rows: the number of rows k of each of the 2 x `chunks` small tables, or a mapping from table names to such
            numbers.
        chunks: the number of parts of a vector; it must divide the width.
        seed: the seed of the hashes and clusters.

    Raises:
        ValueError: the chunks do not divide a width.

    Example:
        >>> import torch, embcomp
        >>> emb = embcomp.nn.CompressedEmbedding(1000, 16, embcomp.ClusteredHash(rows=32, chunks=4))
        >>> embcomp.nbytes(emb) == 4 * 2 * 4 * 32 * 4 + 4 * (1000 * 4 * 5 // 32 + 2) + 8 * 4 + 8  # rows, map, keys
        True
        >>> embcomp.recluster_(emb)
        >>> emb(torch.tensor([3])).shape
        torch.Size([1, 16])
    """

    sized_in_steps: ClassVar[bool] = True  # two rows of each chunk

    rows: RowCount | Mapping[str, RowCount]
    chunks: ReadCount = 4
    seed: int = 0

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        stores, maps = {}, 0
        for table in tables:
            ids, rows = table.ids_or_raise("ClusteredHash"), check_rows(per_table(self.rows, table, "rows"), table.name)
            width, rest = divmod(table.embedding_dim, self.chunks)
            if rest:
                raise ValueError(
                    f"table {table.name!r}: chunks={self.chunks} does not divide embedding_dim {table.embedding_dim}; "
                    "choose a divisor"
                )
            stores[table.name] = Store(check_rows(2 * self.chunks * rows, table.name), width, summands=2)
            maps += 4 * packed_words(ids * self.chunks, bits_for(rows)) + HashEncoder.key_nbytes * self.chunks
        return Sizes(stores, maps + _ROUND_BYTES * len(tables))

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        plans = []
        for table in tables:
            rows = per_table(self.rows, table, "rows")
            encoder = ClusteredEncoder(table, {**self.config(), "rows": rows}, self.seed, rows, self.chunks)
            plans.append(TablePlan(table, encoder, (Chunk(table.name, lookups=2),) * self.chunks, Concat()))
        return Plan(dict(self.sizes(tables).stores), plans)
