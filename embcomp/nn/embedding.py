"""Drop-in for `torch.nn.Embedding`."""

import torch
from torch import Tensor

from embcomp.methods.base import Method
from embcomp.nn.table import CompressedTable
from embcomp.tracing import one_node


class CompressedEmbedding(CompressedTable):
    """A compressed `torch.nn.Embedding`: the same calls, a smaller table.

    Args:
        num_embeddings: how many ids there are; None accepts any non-negative int64 id, where the method allows it.
        embedding_dim: width of a vector.
        method: the compression method's configuration.
        padding_idx: an id whose vector is zero and gets no gradient. `compress_` keeps another vector that it had.
        sparse: gradients of the rows are sparse tensors.
        device: where the rows live.
        dtype: floating dtype of the rows.

    Raises:
        ValueError: the method cannot compress such a table; a padding_idx out of range.

    Example:
        >>> import torch, embcomp
        >>> emb = embcomp.nn.CompressedEmbedding(1_000_000, 32, embcomp.DoubleHash(rows=20_000), padding_idx=0)
        >>> emb(torch.tensor([[1, 2, 0], [4, 5, 0]])).shape
        torch.Size([2, 3, 32])
    """

    def __init__(
        self,
        num_embeddings: int | None,
        embedding_dim: int,
        method: Method,
        padding_idx: int | None = None,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, method, padding_idx, sparse, device, dtype)

    @one_node
    def forward(self, input: Tensor) -> Tensor:
        """Vectors of the ids: integer [*] -> [*, embedding_dim].

        Raises:
            TypeError: what is no tensor.
            ValueError: ids that are not integers, sparse or nested ones, ids on the meta device for rows elsewhere.
            IndexError: an id below 0 or at least num_embeddings.
        """
        return self._read(input, "input")
