"""An encoder, the torchrec collection that reads its rows, and the codecs that decode them."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from embcomp.codecs.base import Codec
from embcomp.nn.stores import pool_vectors
from embcomp.torchrec.encoder import KeyedEncoder
from embcomp.torchrec.look_up import is_traced, look_up_bags, look_up_sequences, sum_bags
from embcomp.torchrec.measure import local_tables, measure


class Branch(nn.Module):
    """Looks up the features of one inner collection; sharding and fusing swap the collection alone.

    Rows with a codec are looked up id by id, because decoding does not commute with pooling; a branch of bags then
    pools what is decoded.

    Args:
        encoder: ids to rows.
        collection: rows to stored values.
        codecs: by table of the collection; the others are served as they are.
        pooled: whether bags come out, a KeyedTensor; else vectors id by id, JaggedTensors by key.
    """

    def __init__(
        self,
        encoder: KeyedEncoder,
        collection: EmbeddingBagCollection | EmbeddingCollection,
        codecs: Mapping[str, Codec],
        pooled: bool,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.collection = collection
        self.sequences = isinstance(collection, EmbeddingCollection)
        self.pooled = pooled
        configs: Any = collection.embedding_configs() if self.sequences else collection.embedding_bag_configs()  # pyright: ignore
        self.store_of = {feature: config.name for config in configs for feature in config.feature_names}
        self.codecs = nn.ModuleDict(dict(codecs))

    def forward(self, features: KeyedJaggedTensor) -> Any:
        rows = self.encoder(features)
        if not self.sequences:
            return look_up_bags(self.collection, rows)
        if not self.codecs:
            return look_up_sequences(self.collection, rows)
        if is_traced(rows):
            decoded = self._decoded(rows)
            return self._pool(decoded, rows) if self.pooled else decoded
        if self.pooled and type(self.collection) is EmbeddingCollection:
            tables = local_tables(self.collection)
            if rows.values().numel() >= sum(table.shape[0] for table in tables.values()):
                # Each row is decoded once, however often it is read.
                read = [self.codecs[name].decode_table(table) for name, table in tables.items()]  # pyright: ignore
                counts = [len(config.feature_names) for config in self.collection.embedding_configs()]
                return sum_bags(read, counts, rows, rows.weights_or_none())
        decoded = self._decoded(rows)
        return self._pool(decoded, rows) if self.pooled else decoded

    def coded_tables(self) -> Iterator[tuple[Tensor, Codec]]:
        """The rows that this process holds whole, and their codecs."""
        for name, table in local_tables(self.collection).items():
            if name in self.codecs:
                yield table, self.codecs[name]  # pyright: ignore[reportReturnType]

    def _decoded(self, rows: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Vectors as they will be served, id by id, by key."""
        stored, asked = look_up_sequences(self.collection, rows), rows.to_dict()
        measured = measure(self.collection, self.codecs)
        result = {}
        for key in rows.keys():  # noqa: SIM118
            values, name = stored[key], self.store_of[key]
            if name in self.codecs:
                vectors = self.codecs[name](values.values(), asked[key].values(), measured[name])
                values = JaggedTensor(values=vectors, lengths=asked[key].lengths())
            result[key] = values
        return result

    def _pool(self, decoded: dict[str, JaggedTensor], rows: KeyedJaggedTensor) -> KeyedTensor:
        asked = rows.to_dict()
        pooled = []
        for key, vectors in decoded.items():
            weights = asked[key].weights_or_none()
            values = vectors.values()
            weights = None if weights is None else weights.to(values.dtype)
            pooled.append(pool_vectors(values, asked[key].offsets(), "sum", weights))
        dims = [vectors.shape[1] for vectors in pooled]
        return KeyedTensor(keys=list(decoded), length_per_key=dims, values=torch.cat(pooled, dim=1))  # pyright: ignore
