"""The encoder of ids that share a row by a map."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from embcomp.graph.cluster_map import ClusterMap, look_up
from embcomp.methods.base import Rows, Table
from embcomp.methods.hashing import HashEncoder, hashed_together
from embcomp.methods.together import Parts
from embcomp.ops.packing import unpack_at


class ClusterEncoder(HashEncoder):
    """An encoder in which an id reads the row of its cluster; unseen ids hash into their own rows or into all rows."""

    words: Tensor

    def __init__(
        self, table: Table, config: Mapping[str, Any], seed: int, found: ClusterMap, hashes: Sequence[int] = ()
    ):
        super().__init__(table, config, seed, [found.unseen_rows or found.rows, *hashes], [1] * (1 + len(hashes)))
        self.config["clusters"] = _described(found)
        self._describe(found)
        self.register_buffer("words", found.words)

    def _describe(self, found: ClusterMap) -> None:
        self.num_ids, self.bits, self.own_rows = found.num_ids, found.bits, found.own_rows
        self.first = found.own_rows if found.unseen_rows else 0
        self.complete = not found.has_unseen and self.table.num_embeddings == found.num_ids

    def encode(self, ids: Tensor) -> list[Rows]:
        rows = look_up(self.words, self.bits, self.num_ids, self.own_rows, ids, self.complete).unsqueeze(-1)
        if self.complete and len(self.ranges) == 1:
            return [Rows(rows)]
        unseen, *hashed = super().encode(ids)
        return [Rows(torch.where(rows < 0, unseen.rows + self.first, rows)), *hashed]

    @classmethod
    def encode_together(cls, asked: Parts) -> Rows:
        encoders = [part.encoder for part in asked.parts]
        maps = [part.encoder if part.chunk == 0 else None for part in asked.parts]  # later chunks hash
        hashed, starts, bits, masks, entries, own_rows, first = hashed_together(
            asked,
            [32 * start for start in asked.starts("words")],
            [encoder.bits for encoder in encoders],
            [(1 << encoder.bits) - 1 for encoder in encoders],
            [0 if map_encoder is None else map_encoder.num_ids for map_encoder in maps],
            [encoder.own_rows for encoder in encoders],
            [0 if map_encoder is None else map_encoder.first for map_encoder in maps],
        )
        known = asked.ids < entries
        row = unpack_at(asked.joined("words"), torch.where(known, starts + asked.ids * bits, starts), masks)
        return Rows(torch.where(known & (row < own_rows), row, hashed + first))

    def cluster_map(self) -> ClusterMap:
        """Return the map that the encoder holds, without statistics of the clustering."""
        said = self.config_of("clusters")["clusters"]
        labels = torch.arange(self.own_rows, dtype=torch.int32, device="cpu")
        return ClusterMap(self.words.cpu(), labels, **said)

    def set_map(self, found: ClusterMap) -> None:
        """Set another map with as many rows; the table then has the map's number of ids."""
        if self.table.num_embeddings is not None:
            self.table = dataclasses.replace(self.table, num_embeddings=found.num_ids)
            self.config["num_embeddings"] = found.num_ids
        self.config_of("clusters")["clusters"] = _described(found)
        self._describe(found)
        self.words = found.words.to(self.words.device)


def _described(found: ClusterMap) -> dict[str, Any]:
    """The attributes of a map that must agree for its packed form to be read; the rows of the ids are in the state."""
    return {name: getattr(found, name) for name in ("num_ids", "rows", "unseen_rows", "has_unseen")}
