"""The network of BEBR (Gan et al. 2023, arXiv 2302.08714): recurrent signs, each level of the previous remainder."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Sign(torch.autograd.Function):
    """The sign function, with the gradient of the identity between -1 and 1."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(values)
        return torch.where(values < 0, -1.0, 1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (values,) = ctx.saved_tensors
        return grad * (values.abs() <= 1)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class SignNetwork(nn.Module):
    """The network: b = sign(W x), then b += 2^-u sign(R_u(x - normalized B_u(b))) for 1 <= u < levels.

    W, R_u and B_u are networks of one hidden layer. In place of a residual connection, W and R_u add a linear map, from
    which training starts.

    Args:
        width: the width of a vector.
        signs: the number of signs of a level.
        levels: the number of levels, 1 to 4.
        hidden: the width of the hidden layers.
    """

    def __init__(self, width: int, signs: int, levels: int, hidden: int) -> None:
        super().__init__()
        self.width, self.number, self.levels, self.hidden = width, signs, levels, hidden
        self.to_signs = nn.ModuleList(_mlp(width, hidden, signs) for _ in range(levels))
        self.direct = nn.ModuleList(nn.Linear(width, signs, bias=False) for _ in range(levels))
        self.back = nn.ModuleList(_mlp(signs, hidden, width) for _ in range(levels - 1))

    def config(self) -> dict[str, int]:
        """Return the arguments of the constructor."""
        return {"width": self.width, "signs": self.number, "levels": self.levels, "hidden": self.hidden}

    def copied(self) -> SignNetwork:
        """Return a copy with its own parameters."""
        return copy.deepcopy(self)

    def forward(self, vectors: Tensor) -> list[Tensor]:
        """Return the signs of each level, -1 and 1, with gradients: floats [n, width] -> `levels` times [n, signs]."""
        vectors = F.normalize(vectors)
        signs: list[Tensor] = []
        total = vectors.new_zeros(len(vectors), self.number)
        for level in range(self.levels):
            left = vectors if level == 0 else vectors - F.normalize(self.back[level - 1](total))
            values = self.direct[level](left) + self.to_signs[level](left)
            signs.append(_Sign.apply(values))  # pyright: ignore[reportArgumentType]
            total = total + 2.0**-level * signs[-1]
        return signs

    def signs(self, vectors: Tensor) -> Tensor:
        """Return the signs of all levels side by side, [n, levels * signs]."""
        return torch.cat(self(vectors), 1)


def total(signs: Tensor, levels: int) -> Tensor:
    """Combine signs into BEBR's code, each level half of the one before: [n, levels * signs] -> [n, signs].

    Example:
        >>> import torch
        >>> total(torch.tensor([[1.0, -1.0, -1.0, -1.0]]), levels=2)
        tensor([[ 0.5000, -1.5000]])
    """
    weights = 2.0 ** -torch.arange(levels, device=signs.device)
    return (signs.unflatten(1, (levels, -1)) * weights.unsqueeze(1)).sum(1)


def beside(code: Tensor, levels: int) -> Tensor:
    """Expand a code so that its product with signs side by side is that of codes: [n, signs] -> [n, levels * signs]."""
    return torch.cat([2.0**-level * code for level in range(levels)], 1)
