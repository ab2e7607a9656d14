"""The encoder of ids that share a row by a map."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from embcomp.graph.cluster_map import ClusterMap, look_up
from embcomp.methods.base import Rows, Table
from embcomp.methods.hashing import HashEncoder
from embcomp.methods.together import Parts
from embcomp.ops.together.maps import clustered


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
        encoders = asked.encoder_of
        mapped = [chunk == 0 for chunk in asked.chunks]  # later chunks hash
        rows = clustered(
            asked.batch,
            words=asked.buffers("words"),
            bits=[encoder.bits for encoder in encoders],
            entries=[encoder.num_ids * own for encoder, own in zip(encoders, mapped, strict=True)],
            own_rows=[encoder.own_rows for encoder in encoders],
            keys=asked.buffers("keys"),
            first=asked.chunks,  # a key for each chunk
            rows=[encoder.ranges[chunk] for encoder, chunk in asked.parts],
            start=[encoder.first * own for encoder, own in zip(encoders, mapped, strict=True)],
        )
        return Rows(rows)

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
