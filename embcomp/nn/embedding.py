"""The drop-in for `torch.nn.Embedding`."""

import torch
from torch import Tensor

from embcomp.methods.base import Method
from embcomp.nn.table import CompressedTable
from embcomp.tracing import one_node


class CompressedEmbedding(CompressedTable):
    """A compressed `torch.nn.Embedding`: the same calls, with a smaller table.

    Args:
        num_embeddings: the number of ids; None accepts any non-negative int64 id, if the method allows that.
        embedding_dim: the width of a vector.
        method: the compression method's configuration.
        padding_idx: an id whose vector is zero and gets no gradient. If the replaced table had another vector there,
            `compress_` keeps it.
        sparse: True for sparse gradients of the rows.
        device: the device of the rows.
        dtype: the floating dtype of the rows.

    Raises:
        ValueError: the method cannot compress such a table, or padding_idx is out of range.

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
        """Look up the vectors of ids, integer [*] -> [*, embedding_dim].

        Raises:
            TypeError: the input is not a tensor.
            ValueError: the ids are not integers, are sparse or nested, or are on the meta device while the rows are
                not.
            IndexError: an id is below 0, or is at least num_embeddings.
        """
        return self._read(input, "input")
