"""MF: matrix factorisation."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from recsys_models.retrieval import DotProduct, Embedding


class MF(DotProduct):
    """A matrix factorisation (Koren et al. 2009; with `bpr_loss` Rendle et al. 2009, arXiv 1205.2618, section 4.3.1).

    The score of item i for user u is `e_u . e_i`. Only the vectors of a batch are looked up. If a batch has more ids
    than the table, they are taken from all vectors, so that a compressed table computes none of them twice.

    Args:
        users: the embedding of the users, a module such as `nn.Embedding` or `embcomp.nn.CompressedEmbedding`.
        items: the embedding of the items, of the same width.

    Shapes: users int64 `[B]`, items int64 `[B, n]` -> scores `[B, n]`.

    Example:
        >>> import torch, embcomp
        >>> users = embcomp.nn.CompressedEmbedding(1_000, 16, embcomp.HashingTrick(rows=100))
        >>> model = MF(users, torch.nn.Embedding(500, 16))
        >>> model(torch.tensor([7, 8]), torch.tensor([[1, 2, 3], [4, 5, 6]])).shape
        torch.Size([2, 3])
        >>> model.scorer()(torch.tensor([7, 8])).shape  # of all items
        torch.Size([2, 500])
    """

    def vectors(self) -> tuple[Tensor, Tensor]:
        return self.users.weight, self.items.weight

    def look_up(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        return _look_up(self.users, users), _look_up(self.items, items)


def _look_up(table: Embedding, ids: Tensor) -> Tensor:
    return table(ids) if ids.numel() <= (table.num_embeddings or 0) else F.embedding(ids, table.weight)
