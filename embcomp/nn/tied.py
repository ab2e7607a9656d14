"""An output layer whose weight is a compressed table."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from embcomp.nn.table import CompressedTable
from embcomp.tracing import NotScripted, one_node


class TiedLinear(NotScripted, nn.Module):
    """An output layer like `nn.Linear` that reads its weight from a compressed table; both train the same rows.

    Each call computes the full table temporarily.

    Args:
        table: the table, with as many ids as there are outputs, shared with the rest of the model.
        bias: the bias, [num_embeddings], or None.

    Example:
        >>> import torch, embcomp
        >>> item = embcomp.nn.CompressedEmbedding(1_000, 8, embcomp.DoubleHash(rows=100))
        >>> head = embcomp.nn.TiedLinear(item)
        >>> head(item(torch.tensor([3, 4]))).shape
        torch.Size([2, 1000])
    """

    def __init__(self, table: CompressedTable, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        if table.num_embeddings is None:
            raise ValueError(
                f"table {table.encoder.table.name!r} has an open id space, so an output layer has no number of outputs"
            )
        self.in_features, self.out_features = table.embedding_dim, table.num_embeddings
        self.table = table
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:
        """The `weight` of the table, computed at each access and read-only."""
        return self.table.weight

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            setattr(self.table, name, value)  # says why not
        super().__setattr__(name, value)

    @one_node
    def forward(self, input: Tensor) -> Tensor:
        """Multiply inputs [..., embedding_dim] by all vectors of the table: [..., num_embeddings]."""
        return F.linear(input, self.table.materialize(), self._parameters["bias"])

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
