"""The stores as torch modules, which hold the parameters of compressed tables."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embcomp.codecs.base import Codec
from embcomp.codecs.integers import Integers
from embcomp.initial_rows import Moments, draw_rows
from embcomp.methods.base import Store
from embcomp.ops.bags import eager, pool_rows, transformed


class _EqualsEmbedding(type):
    """The metaclass by which `PlainStore` equals `nn.Embedding`: regularisers ask `type(module) == nn.Embedding`."""

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is nn.Embedding

    def __hash__(cls) -> int:
        return hash(nn.Embedding)


def check_floats(store: Store, table: str) -> None:
    """Raise ValueError for a store whose rows are not floats, which torch's modules cannot hold."""
    if isinstance(store.coding, Integers):
        raise ValueError(
            f"table {table!r}: rows without a float copy (copy='none') are trained by embcomp.torchrec.fuse_, inside "
            "torchrec's collections: make it a table of a CompressedEmbeddingBagCollection, or take copy='float'"
        )


def _check_here(weight: Tensor) -> None:
    """Raise ValueError if `fully_shard` spread the rows over processes by way of another table that reads them."""
    if type(weight) is nn.Parameter or torch.compiler.is_compiling():
        return
    from torch.distributed.tensor import DTensor  # seldom needed, and slow to import

    if isinstance(weight, DTensor):
        raise ValueError(
            "the rows of this table are sharded by fully_shard on another table that shares them: give all tables of "
            "one method to one call, fully_shard([model.user, model.item]), or shard the model that holds them"
        )


class PlainStore(nn.Embedding, metaclass=_EqualsEmbedding):
    """A table of rows. Several compressed tables may hold the same instance.

    It is an `nn.Embedding`, by `isinstance` and by comparison of types, so that code which looks for embeddings
    (regularisers) finds the trained rows. The compressed table around it is not an `nn.Embedding`, so it is not counted
    twice.

    Attributes:
        weight: the trained rows, [rows, width], from which `codec` makes the served vectors.
        like: the moments that the combined vectors get in `reset_parameters`.
    """

    like: Moments = Moments()  # as `nn.Embedding` draws

    def __init__(
        self,
        store: Store,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        like: Moments | None = None,
    ) -> None:
        self.store = store  # before the constructor, which draws the rows
        if like is not None:
            self.like = like
        super().__init__(store.rows, store.width, sparse=sparse, device=device, dtype=dtype)
        self.codec: Codec | None = None
        if store.coding is not None:
            self.codec = store.coding.module(store.rows, store.dim, self.weight.device, self.weight.dtype)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not hasattr(self, "codec"):  # a pickle of before there were codecs
            self.codec = None

    def reset_parameters(self) -> None:
        """Draw the rows anew, so that the vectors have the mean and the deviation of `like`."""
        draw_rows(self.weight, self.store.init, self.store.summands, self.like)
        codec = self._modules.get("codec")  # there is none yet while the constructor draws
        if isinstance(codec, Codec):
            codec.reset_parameters()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the vectors that `look_up` returns."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def look_up(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum the look-ups of each id: rows [N, lookups] (and weights of that shape) -> [N, dim]."""
        _check_here(self.weight)
        if self.codec is not None:
            vectors = self._decoded(self.codec, rows)
            if weights is not None:
                vectors = vectors * weights.to(vectors.dtype).unsqueeze(-1)
            return vectors.squeeze(1) if rows.shape[-1] == 1 else vectors.sum(1)
        if rows.shape[-1] == 1 and weights is None:
            return F.embedding(rows.squeeze(-1), self.weight, sparse=self.sparse)
        weights = None if weights is None else weights.to(self.weight.dtype)
        if transformed():
            each = F.embedding(rows, self.weight)
            return (each if weights is None else each * weights.unsqueeze(-1)).sum(-2)
        if not eager(self.weight, rows, weights):
            return F.embedding_bag(rows, self.weight, mode="sum", sparse=self.sparse, per_sample_weights=weights)
        ends = torch.arange(rows.shape[0] + 1, device=rows.device, dtype=rows.dtype) * rows.shape[-1]
        flat = None if weights is None else weights.reshape(-1)
        return pool_rows(self.weight, rows.reshape(-1), ends, flat, sparse=self.sparse)

    def pool(self, rows: Tensor, offsets: Tensor, weights: Tensor | None = None, mode: str = "sum") -> Tensor:
        """Pool bags over the first axis of rows [N, lookups]: offsets [B + 1] count ids -> [B, dim]."""
        _check_here(self.weight)
        lookups = rows.shape[-1]
        if self.codec is not None:
            vectors = self._decoded(self.codec, rows.reshape(-1))
            flat = None if weights is None else weights.to(vectors.dtype).reshape(-1)
            return pool_vectors(vectors, offsets * lookups, mode, flat)
        weights = None if weights is None else weights.to(self.weight.dtype).reshape(-1)
        return pool_rows(self.weight, rows.reshape(-1), offsets * lookups, weights, mode, self.sparse)

    def _decoded(self, codec: Codec, rows: Tensor) -> Tensor:
        """Decode rows [...] into the vectors that will be served, [..., dim]."""
        if not torch.compiler.is_compiling() and not self.sparse and rows.numel() >= self.num_embeddings:
            return F.embedding(rows, codec.decode_table(self.weight))  # each row is decoded once, however often read
        return codec(F.embedding(rows, self.weight, sparse=self.sparse), rows, codec.measure(self.weight))


def pool_vectors(vectors: Tensor, offsets: Tensor, mode: str, weights: Tensor | None = None) -> Tensor:
    """Pool bags of vectors [N, D] -> [B, D] as `nn.EmbeddingBag` does: empty bags are zero, also with mode "max"."""
    order = torch.arange(vectors.shape[0], device=vectors.device)
    return pool_rows(vectors, order, offsets, weights, mode)
