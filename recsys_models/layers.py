"""The layers that the models share. Each maps `[B, ...]` to `[B, ...]`, and none knows features or tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Structure = Literal["parallel", "stacked"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


class MLP(nn.Sequential):
    """A stack of hidden layers (linear, batch norm, activation, dropout), and an optional last linear layer.

    Args:
        in_features: the width of the input.
        hidden: the width of each hidden layer; empty for none.
        out_features: the width of the last, linear layer; None to omit it.
        activation: the activation, one of `ACTIVATIONS`.
        dropout: the probability of dropping a hidden unit.
        batch_norm: True to put batch norm before each activation.

    Raises:
        ValueError: the activation is unknown, or a width is below 1.

    Shapes: `[B, in_features]` -> `[B, self.out_features]`.

    Example:
        >>> import torch
        >>> MLP(4, [8, 3], 1, activation="gelu")(torch.zeros(2, 4)).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        out_features: int | None = None,
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is unknown: choose one of {', '.join(ACTIVATIONS)}")
        if below := [width for width in hidden if width < 1]:
            raise ValueError(f"hidden layer of width {below[0]} in hidden={list(hidden)}: widths start at 1")
        layers: list[nn.Module] = []
        width = in_features
        for units in hidden:
            # A bias before batch norm would be subtracted again with the mean.
            layers.append(nn.Linear(width, units, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(units))
            layers.append(ACTIVATIONS[activation]())
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = units
        if out_features is not None:
            layers.append(nn.Linear(width, out_features))
            width = out_features
        super().__init__(*layers)
        self.out_features = width


class FirstOrder(nn.Module):
    """The linear part of a model, `w . x + b`, starting at zero. Unlike `nn.Linear` it may have no input, only a bias.

    Shapes: `[B, in_features]` -> `[B]`.
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(in_features))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class DotInteraction(nn.Module):
    """The inner products of all pairs i < j of `num_vectors` vectors, in the order (0, 1), (0, 2), ..., (1, 2), ...

    See DLRM (Naumov et al. 2019, arXiv 1906.00091), section 2.2.

    Shapes: `[B, num_vectors, D]` -> `[B, num_vectors * (num_vectors - 1) / 2]`.
    """

    pairs: Tensor

    def __init__(self, num_vectors: int) -> None:
        super().__init__()
        first, second = torch.triu_indices(num_vectors, num_vectors, offset=1)
        self.register_buffer("pairs", first * num_vectors + second, persistent=False)
        self.out_features = self.pairs.numel()

    def forward(self, vectors: Tensor) -> Tensor:
        return torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, self.pairs)


def fm_interaction(vectors: Tensor) -> Tensor:
    """Sum the inner products of all pairs of vectors, in linear time (Rendle 2010, Lemma 3.1).

    Shapes: `[B, F, D]` -> `[B]`.

    Example:
        >>> import torch
        >>> fm_interaction(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))  # 1 * 3 + 2 * 4
        tensor([11.])
    """
    square_of_sum = vectors.sum(dim=1).square()
    sum_of_squares = vectors.square().sum(dim=1)
    return 0.5 * (square_of_sum - sum_of_squares).sum(dim=1)


def check_cross(cross_layers: int, structure: str) -> None:
    """Check the arguments that DCN and DCNv2 have in common.

    Raises:
        ValueError: there is no cross layer, or the structure is unknown.
    """
    if cross_layers < 1:
        raise ValueError(f"cross_layers is {cross_layers}: give at least 1")
    if structure not in get_args(Structure):
        raise ValueError(f"structure {structure!r} is unknown: choose one of {', '.join(get_args(Structure))}")


class VectorCross(nn.Module):
    """The cross layer of DCN, `x0 (x . w) + b + x` (Wang et al. 2017, arXiv 1708.05123, eq. 3).

    Shapes: x0 and x `[B, d]` -> `[B, d]`.
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Linear(d, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(d))

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        return x0 * self.weight(x) + self.bias + x


class MatrixCross(nn.Module):
    """The cross layer of DCNv2, `x0 * (W x + b) + x` (Wang et al. 2021, arXiv 2008.13535, eq. 1).

    Args:
        d: the width.
        low_rank: the rank r of `W = U V^T`, U and V `[d, r]` (eq. 2); None for a full matrix.

    Shapes: x0 and x `[B, d]` -> `[B, d]`.
    """

    def __init__(self, d: int, low_rank: int | None = None) -> None:
        super().__init__()
        if low_rank is None:
            self.weight = nn.Linear(d, d)
        else:
            self.weight = nn.Sequential(nn.Linear(d, low_rank, bias=False), nn.Linear(low_rank, d))

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        return x0 * self.weight(x) + x


class MixtureCross(nn.Module):
    """The mixture of low-rank experts of DCNv2, `sum_i G_i(x) E_i(x) + x` (Wang et al. 2021, arXiv 2008.13535, eq. 3).

    Each expert crosses in its own subspace, `E_i(x) = x0 * (U_i tanh(C_i tanh(V_i^T x)) + b)` (eq. 4). The gates `G`
    are a softmax over the experts of a linear map of x.

    Args:
        d: the width.
        low_rank: the width of each expert's subspace.
        experts: the number of experts.

    Shapes: x0 and x `[B, d]` -> `[B, d]`.
    """

    def __init__(self, d: int, low_rank: int, experts: int) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.empty(experts, d, low_rank))
        self.c = nn.Parameter(torch.empty(experts, low_rank, low_rank))
        self.u = nn.Parameter(torch.empty(experts, low_rank, d))
        self.bias = nn.Parameter(torch.zeros(d))
        self.gate = nn.Linear(d, experts, bias=False)
        for stack in (self.v, self.c, self.u):
            for matrix in stack:
                nn.init.xavier_normal_(matrix)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        inner = torch.tanh(torch.einsum("bd,edr->ber", x, self.v))
        inner = torch.tanh(torch.einsum("ber,ers->bes", inner, self.c))
        gates = self.gate(x).softmax(dim=1)
        # The gates sum to one, so x0 and the bias, which all experts share, stay outside the sum.
        return x0 * (torch.einsum("be,bes,esd->bd", gates, inner, self.u) + self.bias) + x
