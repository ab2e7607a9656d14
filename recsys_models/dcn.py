"""DCN: the Deep & Cross Network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from recsys_models.features import Dims, Embeddings, Inputs
from recsys_models.layers import MLP, Structure, VectorCross, check_cross

if TYPE_CHECKING:
    from torchrec import KeyedJaggedTensor


class DCN(nn.Module):
    """A Deep & Cross Network (Wang et al. 2017, arXiv 1708.05123).

    `x0` is the concatenation of the features and the dense columns (eq. 2). Cross layers multiply it with a learned
    projection of the layer before, `x' = x0 (x . w) + b + x` (eq. 3), so that l of them reach interactions of degree l
    + 1. A deep network (eq. 4) is applied to `x0` in parallel, and both outputs go through one linear layer (eq. 5).

    One cross layer and one 192-wide layer, `cross_layers=1, hidden=[192]`, is the set-up in which Unified Embedding
    (Coleman et al. 2023, arXiv 2305.12102) was replicated.

    Args:
        embeddings: the embedding collection, called with the sparse features.
        feature_names: the keys to read from its result.
        dims: the widths of the features, which may differ.
        num_dense: the number of dense columns, possibly 0.
        cross_layers: the number of cross layers.
        hidden: the widths of the deep network's hidden layers.
        structure: "parallel" as in the paper, or "stacked", where the deep network reads the output of the cross
            layers.
        activation: the activation, see `MLP`.
        dropout: the dropout probability, see `MLP`.
        batch_norm: True to use batch norm, see `MLP`.

    Raises:
        ValueError: the structure is unknown, or a number or width is below 1.

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
        >>> model = DCN(
        ...     embeddings, feature_names=["user", "item"], dims=dims, num_dense=0, cross_layers=1, hidden=[192]
        ... )
        >>> ids = torch.tensor([7, 7, 42, 43])  # user 7 with item 42, user 7 with item 43
        >>> sparse = KeyedJaggedTensor.from_lengths_sync(["user", "item"], ids, torch.ones_like(ids))
        >>> model(torch.rand(2, 0), sparse).shape
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
        hidden: Sequence[int] = (512, 256),
        structure: Structure = "parallel",
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        check_cross(cross_layers, structure)
        self.inputs = Inputs(feature_names, dims, num_dense)
        self.embeddings = embeddings
        d = self.inputs.width + num_dense
        self.cross = nn.ModuleList(VectorCross(d) for _ in range(cross_layers))
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
