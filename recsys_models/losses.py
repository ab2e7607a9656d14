"""Losses of retrieval models."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def bpr_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Bayesian Personalised Ranking, `mean -log sigmoid(s+ - s-)` (Rendle et al. 2009, arXiv 1205.2618, section 4.1).

    Args:
        positive: Scores of items that the users met, `[B]` or `[B, 1]`.
        negative: Scores of others, a shape to which `positive` broadcasts, such as `[B, n]`.

    Returns:
        The mean over all pairs, a scalar. Regularisation is the optimizer's (weight decay).

    Example:
        >>> import torch
        >>> bpr_loss(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
        tensor(0.6931)
    """
    return -F.logsigmoid(positive - negative).mean()


def directau_loss(users: Tensor, items: Tensor, gamma: float = 1.0) -> Tensor:
    """Alignment and uniformity of a batch of positive pairs (Wang et al. 2022, arXiv 2206.12811, eq. 4 and 5).

    With vectors normalised to length 1: `mean ||u - i||^2 + gamma (uniform(users) + uniform(items)) / 2` with
    `uniform(x) = log mean exp(-2 ||x - x'||^2)` over the pairs of different places in the batch.

    Args:
        users: Vectors of the users, `[B, D]`.
        items: Vectors of the items that they met, `[B, D]`.
        gamma: Weight of uniformity.

    Returns:
        A scalar. No negatives are needed.

    Raises:
        ValueError: Fewer than two pairs, which have no distance between them.

    Example:
        >>> import torch
        >>> directau_loss(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
        tensor(-4.0000)
    """
    if len(users) < 2:
        raise ValueError(f"directau_loss needs two pairs or more, got {len(users)}; use larger batches")
    users, items = F.normalize(users, dim=-1), F.normalize(items, dim=-1)
    alignment = (users - items).square().sum(-1).mean()
    return alignment + gamma * (_uniformity(users) + _uniformity(items)) / 2


def _uniformity(vectors: Tensor) -> Tensor:
    """||x - y||^2 = 2 - 2 x.y for vectors of length 1, so one matrix product gives all distances."""
    size = len(vectors)
    closeness = (4 * (vectors @ vectors.T - 1)).exp()
    different = closeness.sum() - closeness.diagonal().sum()
    return (different / (size * (size - 1))).log()
