"""The decoding of a collection's rows with codecs: from stored values to the vectors that will be served."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from embcomp.codecs.base import Codec
from embcomp.nn.stores import pool_vectors
from embcomp.ops.grid import RowGrid
from embcomp.torchrec.collection.measure import measure
from embcomp.tracing import NotScripted, one_node


class Decode(NotScripted, nn.Module):
    """A module that decodes the values of a collection per id, and pools them into bags if needed.

    It is a single step for code that traces the model, such as training pipelines.

    Args:
        branch: the branch of the collection. The collection is read at each call, because sharding and fusing swap it.
        codecs: the codecs by table of the collection; other tables are served as they are.
        stores: the table of each key, and the width of its vectors.
        pooled: True to return bags.
    """

    def __init__(
        self, branch: nn.Module, codecs: Mapping[str, Codec], stores: Mapping[str, tuple[str, int]], pooled: bool
    ) -> None:
        super().__init__()
        self._branch = [branch]  # not a child of its own child
        self.codecs = nn.ModuleDict(dict(codecs))
        self.stores = dict(stores)
        self.pool = PoolVectors() if pooled else None

    def row_grids(self) -> dict[str, RowGrid] | None:
        """Return the grid to which each codec rounds, by table, for look-ups that round; None if a codec does more."""
        measured = measure(self._branch[0].collection, self.codecs)  # pyright: ignore[reportArgumentType]
        grids = {name: codec.row_grid(measured[name]) for name, codec in self.codecs.items()}  # pyright: ignore
        return None if any(grid is None for grid in grids.values()) else grids

    @one_node
    def forward(self, stored: Mapping[str, JaggedTensor], rows: KeyedJaggedTensor) -> Any:
        """Decode stored values by key, with their rows, into JaggedTensors by key, or a KeyedTensor of bags."""
        measured = measure(self._branch[0].collection, self.codecs)  # pyright: ignore[reportArgumentType]
        asked = rows.to_dict()
        decoded: dict[str, JaggedTensor] = {}
        for key, (name, _) in self.stores.items():
            values = stored[key]
            if name in self.codecs:
                vectors = self.codecs[name](values.values(), asked[key].values(), measured[name])
                values = JaggedTensor(values=vectors, lengths=asked[key].lengths())
            decoded[key] = values
        if self.pool is None:
            return decoded
        pooled = [
            self.pool(vectors.values(), asked[key].offsets(), asked[key].weights_or_none())
            for key, vectors in decoded.items()
        ]
        dims = [dim for _, dim in self.stores.values()]
        return KeyedTensor(keys=list(decoded), length_per_key=dims, values=torch.cat(pooled, dim=1))  # pyright: ignore


class PoolVectors(NotScripted, nn.Module):
    """A module that pools decoded vectors into bags, each times its weight if there are weights."""

    @one_node
    def forward(self, vectors: Tensor, offsets: Tensor, weights: Tensor | None) -> Tensor:
        return pool_vectors(vectors, offsets, "sum", None if weights is None else weights.to(vectors.dtype))
