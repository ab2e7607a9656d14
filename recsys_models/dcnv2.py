"""DCNv2: the Deep & Cross Network, version 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from recsys_models.features import Dims, Embeddings, Inputs
from recsys_models.layers import MLP, MatrixCross, MixtureCross, Structure, check_cross

if TYPE_CHECKING:
    from torchrec import KeyedJaggedTensor


class DCNv2(nn.Module):
    """An improved Deep & Cross Network (Wang et al. 2021, arXiv 2008.13535).

    It has cross layers `x' = x0 * (W x + b) + x` (eq. 1) with a full matrix, a low-rank matrix (eq. 2), or a gated
    mixture of low-rank experts (eqs. 3, 4), and a deep network after them or in parallel.

    Args:
        embeddings: the embedding collection, called with the sparse features.
        feature_names: the keys to read from its result.
        dims: the widths of the features, which may differ.
        num_dense: the number of dense columns, possibly 0.
        cross_layers: the number of cross layers.
        low_rank: the rank of the cross matrices; None for full ones.
        experts: the number of low-rank experts; 1 for a plain low-rank matrix.
        hidden: the widths of the deep network's hidden layers.
        structure: "stacked", where the deep network reads the output of the cross layers, or "parallel" (the paper's
            figure 1).
        activation: the activation, see `MLP`.
        dropout: the dropout probability, see `MLP`.
        batch_norm: True to use batch norm, see `MLP`.

    Raises:
        ValueError: the structure is unknown, a number or width is below 1, or there are several experts without
            `low_rank`.

    Shapes: dense float `[B, num_dense]`, sparse KeyedJaggedTensor of stride B -> logits `[B]`.

    Example:
        >>> import torch
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> dims = {"user": 16, "item": 8}
        >>> tables = [
        ...     EmbeddingBagConfig(name=name, feature_names=[name], num_embeddings=100, embedding_dim=dim)
        ...     for name, dim in dims.items()
        ... ]
        >>> embeddings = EmbeddingBagCollection(tables=tables)
        >>> model = DCNv2(
        ...     embeddings, feature_names=["user", "item"], dims=dims, num_dense=3, low_rank=4, experts=2
        ... )
        >>> ids = torch.tensor([7, 7, 42, 43])  # user 7 with item 42, user 7 with item 43
        >>> sparse = KeyedJaggedTensor.from_lengths_sync(["user", "item"], ids, torch.ones_like(ids))
        >>> model(torch.rand(2, 3), sparse).shape
        torch.Size([2])
    """

    def __init__(
        self,
        embeddings: Embeddings,
        *,
        feature_names: Sequence[str],
        dims: Dims,
        num_dense: int,
        cross_layers: int = 3,
        low_rank: int | None = None,
        experts: int = 1,
        hidden: Sequence[int] = (512, 256),
        structure: Structure = "stacked",
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        check_cross(cross_layers, structure)
        self.inputs = Inputs(feature_names, dims, num_dense)
        self.embeddings = embeddings
        d = self.inputs.width + num_dense
        self.cross = nn.ModuleList(_cross(d, low_rank, experts) for _ in range(cross_layers))
        self.deep = MLP(d, hidden, activation=activation, dropout=dropout, batch_norm=batch_norm)
        self.parallel = structure == "parallel"
        self.output = nn.Linear(self.deep.out_features + (d if self.parallel else 0), 1)

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        dense, features = self.inputs(dense, self.embeddings(sparse))
        x0 = torch.cat((features, dense), dim=1)
        x = x0
        for layer in self.cross:
            x = layer(x0, x)
        x = torch.cat((x, self.deep(x0)), dim=1) if self.parallel else self.deep(x)
        return self.output(x).squeeze(1)


def _cross(d: int, low_rank: int | None, experts: int) -> nn.Module:
    if experts < 1:
        raise ValueError(f"experts is {experts}: give at least 1")
    if low_rank is not None and low_rank < 1:
        raise ValueError(f"low_rank is {low_rank}: give at least 1, or None for full matrices")
    if experts == 1:
        return MatrixCross(d, low_rank)
    if low_rank is None:
        raise ValueError(f"experts={experts} needs low_rank, the width of each expert's subspace")
    return MixtureCross(d, low_rank, experts)
