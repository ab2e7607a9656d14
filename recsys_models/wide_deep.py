"""Wide & Deep: a linear part and a deep network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from recsys_models.features import Dims, Embeddings, Inputs
from recsys_models.layers import MLP, FirstOrder

if TYPE_CHECKING:
    from torchrec import KeyedJaggedTensor


class WideDeep(nn.Module):
    """The Wide & Deep model (Cheng et al. 2016, arXiv 1606.07792).

    The logit is `w_wide . [x, phi(x)] + w_deep . a + b` (eq. 3), where `a` is the last layer of a deep network (eq. 2)
    over the embeddings. The wide weights are in the collection `linear`, one row per id; crossed features `phi(x)` (eq.
    1) are features that only `linear` holds. Without `linear` the wide part is a linear map of the embeddings.

    Args:
        embeddings: the embedding collection, called with the sparse features.
        feature_names: the keys to read from its result.
        dims: the widths of the features, which may differ.
        num_dense: the number of dense columns, possibly 0.
        linear: the collection of the wide weights; all of its columns are summed.
        hidden: the widths of the deep network's hidden layers.
        activation: the activation, see `MLP`.
        dropout: the dropout probability, see `MLP`.
        batch_norm: True to use batch norm, see `MLP`.

    Raises:
        ValueError: a width is below 1, or a feature has none.

    Shapes: dense float `[B, num_dense]`, sparse KeyedJaggedTensor of stride B -> logits `[B]`.

    Example:
        >>> import torch
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> def tables(*names, dim):
        ...     return [
        ...         EmbeddingBagConfig(name=name, feature_names=[name], num_embeddings=100, embedding_dim=dim)
        ...         for name in names
        ...     ]
        >>> embeddings = EmbeddingBagCollection(tables=tables("user", "item", dim=8))
        >>> linear = EmbeddingBagCollection(tables=tables("user", "item", "user x item", dim=1))
        >>> model = WideDeep(embeddings, feature_names=["user", "item"], dims=8, num_dense=3, linear=linear)
        >>> ids = torch.tensor([7, 7, 42, 43, 15, 16])  # user 7 with item 42, user 7 with item 43
        >>> sparse = KeyedJaggedTensor.from_lengths_sync(["user", "item", "user x item"], ids, torch.ones_like(ids))
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
        linear: Embeddings | None = None,
        hidden: Sequence[int] = (1024, 512, 256),
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.inputs = Inputs(feature_names, dims, num_dense)
        self.embeddings = embeddings
        self.linear = linear
        self.wide = FirstOrder(num_dense + (self.inputs.width if linear is None else 0))
        width = self.inputs.width + num_dense
        self.deep = MLP(width, hidden, 1, activation=activation, dropout=dropout, batch_norm=batch_norm)

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        dense, features = self.inputs(dense, self.embeddings(sparse))
        x = torch.cat((features, dense), dim=1)
        logits = self.deep(x).squeeze(1)
        if self.linear is None:
            return logits + self.wide(x)
        # Every column is summed, so the order of the keys does not matter here.
        return logits + self.wide(dense) + self.linear(sparse).values().sum(dim=1)
