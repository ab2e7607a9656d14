"""GMF: the dot product of two features, as a click-through model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from recsys_models.features import Dims, Embeddings, Inputs

if TYPE_CHECKING:
    from torchrec import KeyedJaggedTensor


class GMF(nn.Module):
    """A generalised matrix factorisation without output weights: logit = e_u . e_i.

    It is equation 9 of He et al. 2017 (arXiv 1708.05031) with h = 1, as in github.com/thomasahle/cce.

    The model depends only on the products of the two tables, so that they may be rewritten together
    (`embcomp.align_dot_product_`).

    Args:
        embeddings: the embedding collection, called with the sparse features.
        feature_names: the two features.
        dims: the width of both features.
        num_dense: the number of dense columns, which must be 0.

    Raises:
        ValueError: there are not exactly two features, they differ in width, or there are dense columns.

    Shapes: dense float `[B, 0]`, sparse KeyedJaggedTensor of stride B -> logits `[B]`.

    Example:
        >>> import torch
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
        >>> tables = [
        ...     EmbeddingBagConfig(name=name, feature_names=[name], num_embeddings=100, embedding_dim=8)
        ...     for name in ("user", "item")
        ... ]
        >>> model = GMF(EmbeddingBagCollection(tables=tables), feature_names=["user", "item"], dims=8, num_dense=0)
        >>> ids = torch.tensor([7, 7, 42, 43])
        >>> sparse = KeyedJaggedTensor.from_lengths_sync(["user", "item"], ids, torch.ones_like(ids))
        >>> model(torch.rand(2, 0), sparse).shape
        torch.Size([2])
    """

    def __init__(self, embeddings: Embeddings, *, feature_names: Sequence[str], dims: Dims, num_dense: int) -> None:
        super().__init__()
        if len(feature_names) != 2 or num_dense:
            raise ValueError(
                f"GMF is the dot product of two features, got {list(feature_names)} and {num_dense} dense columns: "
                "choose two features of the data, or another model"
            )
        self.inputs = Inputs(feature_names, dims, num_dense)
        self.embeddings = embeddings
        self.dim = self.inputs.equal_dim("GMF")

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        _, features = self.inputs(dense, self.embeddings(sparse))
        users, items = features.split(self.dim, dim=1)
        return (users * items).sum(1)
