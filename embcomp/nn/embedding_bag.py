"""The drop-in for `torch.nn.EmbeddingBag`."""

from typing import Any, Literal

import torch
from torch import Tensor

from embcomp.methods.base import Method
from embcomp.nn.arguments import check_flag
from embcomp.nn.calls import bag_call
from embcomp.nn.stores import pool_vectors
from embcomp.nn.table import CompressedTable
from embcomp.tracing import one_node


class CompressedEmbeddingBag(CompressedTable):
    """A compressed `torch.nn.EmbeddingBag`. A bag equals the pooled vectors of `CompressedEmbedding`, for every method.

    Args:
        num_embeddings: the number of ids; None accepts any non-negative int64 id, if the method allows that.
        embedding_dim: the width of a vector.
        method: the compression method's configuration.
        mode: the pooling, "sum", "mean" or "max" (default "mean", as in torch).
        include_last_offset: True if offsets end with the number of ids.
        padding_idx: an id that is left out of its bag.
        sparse: True for sparse gradients of the rows.
        device: the device of the rows.
        dtype: the floating dtype of the rows.

    Example:
        >>> import torch, embcomp
        >>> bag = embcomp.nn.CompressedEmbeddingBag(10_000, 16, embcomp.QuotientRemainder(), mode="sum")
        >>> bag(torch.tensor([1, 2, 4, 5, 4]), offsets=torch.tensor([0, 3])).shape
        torch.Size([2, 16])
    """

    def __init__(
        self,
        num_embeddings: int | None,
        embedding_dim: int,
        method: Method,
        mode: Literal["sum", "mean", "max"] = "mean",
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_flag(include_last_offset, "include_last_offset")
        _check_mode(mode)
        super().__init__(num_embeddings, embedding_dim, method, padding_idx, sparse, device, dtype)
        self.mode: str = mode
        self.include_last_offset = include_last_offset

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "mode":
            _check_mode(value)
        super().__setattr__(name, value)

    @one_node
    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Pool the vectors of each bag: ids [B, L], or [N] with offsets [B], -> [B, embedding_dim].

        Args:
            input: the ids, integers.
            offsets: the start of each bag, [B], or [B + 1] with include_last_offset; only with one-dimensional ids.
            per_sample_weights: a factor for each id, of the shape of `input`, only with mode "sum".

        Raises:
            TypeError: an argument is not a tensor.
            ValueError: shapes or offsets do not fit, weights are given with another mode, or ids are not integers.
            IndexError: an id is out of range.
        """
        settings = {"mode": self.mode, "include_last_offset": self.include_last_offset}
        call = bag_call(input, offsets, per_sample_weights, **settings, device=self._store(0).device)
        pooled = self._pooled(call.ids, call.bounds, call.weights)
        return pooled[:-1] if call.spare else pooled

    def _pooled(self, ids: Tensor, bounds: Tensor, weights: Tensor | None) -> Tensor:
        """Pool the bags of flat ids: bounds [B + 1] -> [B, embedding_dim]."""
        weights = None if weights is None else weights.to(self._store(0).dtype)
        padding = None if self.padding_idx is None else ids == self.padding_idx
        if padding is None and self.combiner.linear and self.mode != "max":
            return self._pooled_look_up(ids, bounds, weights)
        vectors = self._vectors(ids)  # zeros at the padding id
        if self.mode == "sum" or padding is None:
            return pool_vectors(vectors, bounds, self.mode, weights)
        if self.mode == "mean":
            return pool_vectors(vectors, bounds, "sum") / _lengths(bounds, ~padding, vectors)
        lowest = vectors.masked_fill(padding.unsqueeze(-1), float("-inf"))
        pooled = pool_vectors(lowest, bounds, "max")
        return pooled.masked_fill(pooled == float("-inf"), 0.0)

    def _pooled_look_up(self, ids: Tensor, bounds: Tensor, weights: Tensor | None) -> Tensor:
        """Pool the bags inside the look-up, chunk by chunk."""
        encoded = self.encoder(ids)
        plain = weights is None and all(rows.weights is None and rows.rows.shape[-1] == 1 for rows in encoded)
        pooled = []
        for i, (rows, fixed) in enumerate(encoded):
            both = fixed
            if weights is not None:
                both = weights.unsqueeze(-1).expand(rows.shape) if fixed is None else fixed * weights.unsqueeze(-1)
            pooled.append(self._store(i).pool(rows, bounds, both, self.mode if plain else "sum"))
        out = self.combiner(pooled)
        return out if plain or self.mode == "sum" else out / _lengths(bounds, None, out)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode!r}"


def _check_mode(mode: Any) -> None:
    if not isinstance(mode, str) or mode not in ("sum", "mean", "max"):
        raise ValueError(f"mode must be 'sum', 'mean' or 'max', got {mode!r}")


def _lengths(bounds: Tensor, counted: Tensor | None, like: Tensor) -> Tensor:
    """The number of counted ids of each bag, at least 1, [B, 1] in the dtype of `like`."""
    if counted is None:
        lengths = bounds.diff()
    else:
        before = torch.cat([bounds.new_zeros(1), counted.long().cumsum(0)])
        lengths = before[bounds[1:]] - before[bounds[:-1]]
    return lengths.clamp(min=1).unsqueeze(-1).to(like.dtype)
