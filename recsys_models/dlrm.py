"""DLRM: the Deep Learning Recommendation Model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from recsys_models.features import Dims, Embeddings, Inputs
from recsys_models.layers import MLP, DotInteraction

if TYPE_CHECKING:
    from torchrec import KeyedJaggedTensor


class DLRM(nn.Module):
    """The Deep Learning Recommendation Model (Naumov et al. 2019, arXiv 1906.00091, section 2.2 and figure 1).

    The bottom MLP turns the dense columns into one more vector of the embeddings' width. The inner products of all
    pairs of vectors, and the output of the bottom MLP, go through the top MLP. Without dense columns there is no bottom
    MLP, and the top MLP reads only the inner products.

    Args:
        embeddings: the embedding collection, called with the sparse features.
        feature_names: the keys to read from its result.
        dims: the width of the features, equal for all.
        num_dense: the number of dense columns, possibly 0.
        bottom_hidden: the widths of the bottom MLP's hidden layers; a last layer of the embeddings' width follows.
        hidden: the widths of the top MLP's hidden layers.
        activation: the activation of both MLPs, see `MLP`.
        dropout: the dropout probability of the top MLP.
        batch_norm: True to use batch norm in the top MLP.

    Raises:
        ValueError: the features differ in width, or there is only one vector and so no pair.

    Shapes: dense float `[B, num_dense]`, sparse KeyedJaggedTensor of stride B -> logits `[B]`.

    Example:
        >>> import torch
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> tables = [
        ...     EmbeddingBagConfig(name=name, feature_names=[name], num_embeddings=100, embedding_dim=8)
        ...     for name in ("user", "item")
        ... ]
        >>> embeddings = EmbeddingBagCollection(tables=tables)
        >>> model = DLRM(embeddings, feature_names=["user", "item"], dims=8, num_dense=3)
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
        bottom_hidden: Sequence[int] = (512, 256),
        hidden: Sequence[int] = (512, 256),
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.inputs = Inputs(feature_names, dims, num_dense)
        self.dim = self.inputs.equal_dim("DLRM")
        self.num_features = len(self.inputs.feature_names)
        if self.num_features == 1 and num_dense == 0:
            raise ValueError(
                f"DLRM has one vector, feature {feature_names[0]!r}, and so no pair to interact: "
                "add a feature or dense columns"
            )
        self.embeddings = embeddings
        self.bottom = MLP(num_dense, [*bottom_hidden, self.dim], activation=activation) if num_dense else None
        self.interaction = DotInteraction(self.num_features + (num_dense > 0))
        width = self.interaction.out_features + (self.dim if num_dense else 0)
        self.top = MLP(width, hidden, 1, activation=activation, dropout=dropout, batch_norm=batch_norm)

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        dense, features = self.inputs(dense, self.embeddings(sparse))
        vectors = features.unflatten(1, (self.num_features, self.dim))
        if self.bottom is None:
            return self.top(self.interaction(vectors)).squeeze(1)
        bottom = self.bottom(dense)
        pairs = self.interaction(torch.cat((bottom.unsqueeze(1), vectors), dim=1))
        return self.top(torch.cat((bottom, pairs), dim=1)).squeeze(1)
