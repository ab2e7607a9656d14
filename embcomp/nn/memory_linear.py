"""A dense layer whose matrix product is a sum of hashed look-ups."""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embcomp.nn.arguments import check_home
from embcomp.ops.bags import transformed
from embcomp.ops.hashing import MAX_ROWS
from embcomp.settings import MAX_DIM, Within, checked

_MOST_BITS = 16


class MemoryLinear(nn.Module):
    """A layer that looks up rows instead of multiplying (MemoryFormer, Ding et al. 2024, arXiv 2411.12992, sec. 3.1).

    The input is cut into K parts z_k of `bits` values. The signs of a part select a row of its table T_k, and
    y = b + sum_k p(z_k) T_k[signs of z_k], with p the softmax of the products of z_k with all corners {-1, 1}^bits, at
    the corner that was chosen: p(z) = prod_i sigmoid(2 |z_i|). The gradient reaches the input through p.

    It needs no matrix product, K additions of rows instead of in_features, and 2^bits / bits times the parameters of
    `nn.Linear`. docs/methods/memory-linear.md discusses its use in a recommender.

    Args:
        in_features: the width of the input; a multiple of `bits`.
        out_features: the width of the output.
        bits: the number of values of a part, 1 to 16.
        bias: True to add a bias.
        device: the device of the parameters.
        dtype: the floating dtype of the parameters.

    Attributes:
        weight: the rows of all tables, [K 2^bits, out_features].
        bias: the bias, [out_features], or None.

    Raises:
        ValueError: `bits` does not divide in_features, or a width or the number of bits is out of range.

    Example:
        >>> import torch, embcomp
        >>> layer = embcomp.nn.MemoryLinear(64, 32, bits=4)
        >>> layer(torch.randn(5, 64)).shape, layer.weight.shape
        (torch.Size([5, 32]), torch.Size([256, 32]))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: int = 8,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_home(device, dtype)
        width = Annotated[int, Within(1, MAX_DIM)]
        self.in_features = checked(in_features, width, "MemoryLinear: in_features")
        self.out_features = checked(out_features, width, "MemoryLinear: out_features")
        self.bits = checked(bits, Annotated[int, Within(1, _MOST_BITS)], "MemoryLinear: bits")
        if self.in_features % self.bits:
            raise ValueError(
                f"MemoryLinear: bits={self.bits} does not divide in_features={self.in_features}; choose a divisor"
            )
        self.parts = self.in_features // self.bits
        if (self.parts << self.bits) * self.out_features > MAX_ROWS:
            raise ValueError(
                f"MemoryLinear: in_features={in_features}, out_features={out_features} and bits={bits} give "
                f"{self.parts << self.bits:,} rows of {out_features:,} numbers, more than 2^31; choose fewer bits"
            )
        home = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(self.parts << self.bits, self.out_features, **home))
        self.bias = nn.Parameter(torch.empty(self.out_features, **home)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw rows so that normal inputs give the variance that `nn.Linear` gives them, 1 / 3."""
        points = torch.linspace(-8, 8, 4001, dtype=torch.float64, device="cpu")
        density = torch.exp(-points.square() / 2)
        square = float((torch.sigmoid(2 * points.abs()).square() * density).sum() / density.sum()) ** self.bits
        with torch.no_grad():
            self.weight.normal_(0, (3 * self.parts * square) ** -0.5)
            if self.bias is not None:
                self.bias.uniform_(-(self.in_features**-0.5), self.in_features**-0.5)

    def forward(self, input: Tensor) -> Tensor:
        """Map [*, in_features] to [*, out_features].

        Raises:
            ValueError: the input has another width.
        """
        if input.shape[-1:] != (self.in_features,):
            raise ValueError(f"MemoryLinear: input must be [*, {self.in_features}], got {list(input.shape)}")
        parts = input.reshape(-1, self.parts, self.bits)
        powers = 1 << torch.arange(self.bits, device=input.device)
        starts = torch.arange(self.parts, device=input.device) << self.bits
        rows = ((parts >= 0).long() * powers).sum(-1) + starts
        weights = torch.sigmoid(2 * parts.abs()).prod(-1)
        if transformed() or torch.is_autocast_enabled(input.device.type):
            out = (F.embedding(rows, self.weight) * weights.unsqueeze(-1)).sum(1)
        else:
            out = F.embedding_bag(rows, self.weight, mode="sum", per_sample_weights=weights.to(self.weight.dtype))
        out = out if self.bias is None else out + self.bias
        return out.reshape(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, bias={self.bias is not None}"
