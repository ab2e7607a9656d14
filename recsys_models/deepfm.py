"""DeepFM: a factorization machine and a deep network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from recsys_models.features import Dims, Embeddings, Inputs
from recsys_models.layers import MLP, FirstOrder, fm_interaction

if TYPE_CHECKING:
    from torchrec import KeyedJaggedTensor


class DeepFM(nn.Module):
    """The DeepFM model (Guo et al. 2017, arXiv 1703.04247).

    The logit is `y_FM + y_DNN` (eq. 1): a factorization machine, `<w, x>` plus the inner products of all pairs of field
    vectors (eq. 2), and a deep network over the same vectors (eqs. 3, 4). A dense column is a field as well, its value
    times a learned vector.

    Args:
        embeddings: the embedding collection, called with the sparse features.
        feature_names: the keys to read from its result.
        dims: the width of the features, equal for all.
        num_dense: the number of dense columns, possibly 0.
        linear: a second collection for the first-order weights of the sparse features, all of whose columns are summed;
            by default these are a learned linear map of the embeddings.
        hidden: the widths of the deep network's hidden layers.
        activation: the activation, see `MLP`.
        dropout: the dropout probability, see `MLP`.
        batch_norm: True to use batch norm, see `MLP`.

    Raises:
        ValueError: the features differ in width.

    Shapes: dense float `[B, num_dense]`, sparse KeyedJaggedTensor of stride B -> logits `[B]`.

    Example:
        >>> import torch
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> def tables(dim):
        ...     return [
        ...         EmbeddingBagConfig(name=name, feature_names=[name], num_embeddings=100, embedding_dim=dim)
        ...         for name in ("user", "item")
        ...     ]
        >>> embeddings = EmbeddingBagCollection(tables=tables(8))
        >>> linear = EmbeddingBagCollection(tables=tables(1))
        >>> model = DeepFM(embeddings, feature_names=["user", "item"], dims=8, num_dense=3, linear=linear)
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
        linear: Embeddings | None = None,
        hidden: Sequence[int] = (400, 400, 400),
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.inputs = Inputs(feature_names, dims, num_dense)
        self.dim = self.inputs.equal_dim("DeepFM")
        self.num_features = len(self.inputs.feature_names)
        self.embeddings = embeddings
        self.linear = linear
        self.first_order = FirstOrder(num_dense + (self.inputs.width if linear is None else 0))
        self.dense_vectors = nn.Parameter(torch.randn(num_dense, self.dim) * 0.01)
        fields = self.num_features + num_dense
        self.deep = MLP(fields * self.dim, hidden, 1, activation=activation, dropout=dropout, batch_norm=batch_norm)

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        dense, features = self.inputs(dense, self.embeddings(sparse))
        vectors = features.unflatten(1, (self.num_features, self.dim))
        vectors = torch.cat((vectors, dense.unsqueeze(2) * self.dense_vectors), dim=1)
        logits = fm_interaction(vectors) + self.deep(vectors.flatten(1)).squeeze(1)
        if self.linear is None:
            return logits + self.first_order(torch.cat((features, dense), dim=1))
        # Every column is summed, so the order of the keys does not matter here.
        return logits + self.first_order(dense) + self.linear(sparse).values().sum(dim=1)
