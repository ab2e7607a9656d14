"""A branch: an encoder, the torchrec collection that reads its rows, and the codecs that decode them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embcomp.codecs.base import Codec
from embcomp.torchrec.collection.decode import Decode
from embcomp.torchrec.collection.encoder import KeyedEncoder
from embcomp.torchrec.collection.measure import local_tables
from embcomp.torchrec.collection.unsharded import is_traced, look_up_bags, look_up_sequences, sum_bags
from embcomp.torchrec.contents import configs_of, weights_of
from embcomp.torchrec.fused.integers import IntegerTables
from embcomp.torchrec.fused.tables import FusedTables


class Branch(nn.Module):
    """The look-up of the features of one inner collection; sharding and fusing swap only the collection.

    Rows with a codec are looked up id by id, because decoding does not commute with pooling; a branch of bags then
    pools the decoded vectors.

    Args:
        encoder: the encoder from ids to rows.
        collection: the collection from rows to stored values.
        codecs: the codecs by table of the collection; other tables are served as they are.
        pooled: True to return bags, as a KeyedTensor; False for vectors per id, as JaggedTensors by key.
    """

    def __init__(
        self,
        encoder: KeyedEncoder,
        collection: EmbeddingBagCollection | EmbeddingCollection | IntegerTables,
        codecs: Mapping[str, Codec],
        pooled: bool,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.collection = collection
        self.sequences = not isinstance(collection, EmbeddingBagCollection)
        self.pooled = pooled
        configs = configs_of(collection)
        dims = {
            config.name: codecs[config.name].dim if config.name in codecs else config.embedding_dim
            for config in configs
        }
        stores = {key: (config.name, dims[config.name]) for config in configs for key in config.feature_names}
        self.decode = Decode(self, codecs, stores, pooled) if codecs else None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not hasattr(self, "decode"):  # a pickle of before there were codecs
            self.decode, self.pooled = None, not self.sequences

    def forward(self, features: KeyedJaggedTensor) -> Any:
        rows = self.encoder(features)
        if isinstance(self.collection, IntegerTables):
            return self.collection(rows)
        if isinstance(self.collection, FusedTables) and not self.sequences and not is_traced(rows):
            return self.collection(rows, private=not _share_memory(rows.values(), features.values()))
        if not self.sequences:
            return look_up_bags(self.collection, rows)
        if self.decode is None:
            return look_up_sequences(self.collection, rows)
        if self.pooled and not is_traced(rows) and type(self.collection) is EmbeddingCollection:
            tables = local_tables(self.collection)
            if rows.values().numel() >= sum(table.shape[0] for table in tables.values()):
                # Each row is decoded once, however often it is read.
                read = [self.decode.codecs[name].decode_table(table) for name, table in tables.items()]  # pyright: ignore
                counts = [len(config.feature_names) for config in self.collection.embedding_configs()]
                return sum_bags(read, counts, rows, rows.weights_or_none())
        if self.pooled and isinstance(self.collection, FusedTables) and self.collection.rounds and not is_traced(rows):
            grids = self.decode.row_grids()
            if grids is not None:
                return self.collection.rounded_bags(rows, grids)
        return self.decode(look_up_sequences(self.collection, rows), rows)

    def reset_parameters(self) -> None:
        """Draw the rows anew, and what codecs learn beside them. Raise ValueError for fused or sharded rows."""
        inner: Any = self.collection
        if isinstance(inner, IntegerTables):
            for table in inner.embeddings.values():
                table.reset_parameters()  # pyright: ignore[reportCallIssue]
            return
        if type(inner) not in (EmbeddingBagCollection, EmbeddingCollection):
            raise ValueError(
                f"tables {list(weights_of(inner))} are fused, sharded or quantised "
                f"({type(inner).__name__}): call reset_parameters before that"
            )
        weights = weights_of(inner)
        for config in configs_of(inner):
            config.init_fn(weights[config.name])
        for codec in self.codecs.values():
            codec.reset_parameters()

    @property
    def codecs(self) -> dict[str, Codec]:
        """The codecs by table of the collection."""
        if isinstance(self.collection, IntegerTables):
            return {
                name: codec for name, (_, codec) in zip(self.collection.names, self.collection.tables(), strict=True)
            }
        return {} if self.decode is None else dict(self.decode.codecs.items())  # pyright: ignore


def _share_memory(mine: Tensor, theirs: Tensor) -> bool:
    return mine.untyped_storage().data_ptr() == theirs.untyped_storage().data_ptr()
