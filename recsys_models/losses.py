"""The losses of retrieval and sequence models."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def bpr_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Compute Bayesian Personalised Ranking, `mean -log sigmoid(s+ - s-)` (Rendle et al. 2009, arXiv 1205.2618).

    Args:
        positive: the scores of items that the users met, `[B]` or `[B, 1]`.
        negative: the scores of other items, of a shape to which `positive` broadcasts, such as `[B, n]`.

    Returns:
        The mean over all pairs, a scalar. Regularisation is left to the optimizer (weight decay).

    Example:
        >>> import torch
        >>> bpr_loss(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
        tensor(0.6931)
    """
    return -F.logsigmoid(positive - negative).mean()


def directau_loss(users: Tensor, items: Tensor, gamma: float = 1.0) -> Tensor:
    """Compute alignment and uniformity of positive pairs (DirectAU, Wang et al. 2022, arXiv 2206.12811, eq. 4 and 5).

    With vectors normalised to length 1: `mean ||u - i||^2 + gamma (uniform(users) + uniform(items)) / 2` with
    `uniform(x) = log mean exp(-2 ||x - x'||^2)` over the pairs of different places in the batch.

    Args:
        users: the vectors of the users, `[B, D]`.
        items: the vectors of the items that they met, `[B, D]`.
        gamma: the weight of uniformity.

    Returns:
        A scalar. No negatives are needed.

    Raises:
        ValueError: there are fewer than two pairs, which have no distance between them.

    Example:
        >>> import torch
        >>> directau_loss(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
        tensor(-4.0000)
    """
    if len(users) < 2:
        raise ValueError(f"directau_loss needs at least two pairs, got {len(users)}; use larger batches")
    users, items = F.normalize(users, dim=-1), F.normalize(items, dim=-1)
    alignment = (users - items).square().sum(-1).mean()
    return alignment + gamma * (_uniformity(users) + _uniformity(items)) / 2


def softmax_loss(queries: Tensor, vectors: Tensor, targets: Tensor) -> Tensor:
    """Compute the cross-entropy over all items, `mean -log softmax(q . v)[target]`: exact, with a score for each item.

    Args:
        queries: the queries, float `[N, D]`.
        vectors: the vectors of all items, `[num_items, D]`.
        targets: the items to find, int64 `[N]`.

    Example:
        >>> import torch
        >>> softmax_loss(torch.zeros(2, 4), torch.randn(8, 4), torch.tensor([1, 5]))  # log 8
        tensor(2.0794)
    """
    return F.cross_entropy(queries @ vectors.T, targets)


def sampled_softmax_loss(
    queries: Tensor, positives: Tensor, targets: Tensor, negatives: Tensor, sampled: Tensor, log_q: Tensor
) -> Tensor:
    """Compute the cross-entropy over the target and some drawn items, corrected for how often each is drawn.

    The sum over all items is estimated by `exp(q . v_target) + sum_j exp(q . v_j - log(n Q(j)))` over the n drawn items
    that are not the target (Bengio and Senecal 2008; log-Q of Yi et al. 2019). The estimate of the sum is unbiased. The
    target, which is always present, is not corrected (Khrylchenko et al. 2025, arXiv 2507.09331).

    Args:
        queries: the queries, float `[N, D]`.
        positives: the vectors of the targets, `[N, D]`.
        targets: the items to find, int64 `[N]`.
        negatives: the vectors of the drawn items, `[n, D]`, the same for all queries.
        sampled: the drawn items, int64 `[n]`, with replacement.
        log_q: the logarithm of the probability with which each of them is drawn, `[n]`.

    Raises:
        ValueError: there is no drawn item.

    Example:
        >>> import torch
        >>> items, every = torch.randn(8, 4), torch.arange(8)
        >>> queries, targets = torch.zeros(2, 4), torch.tensor([1, 5])
        >>> log_q = torch.full((8,), 1 / 8).log()
        >>> sampled_softmax_loss(queries, items[targets], targets, items, every, log_q)  # all drawn once: exact
        tensor(2.0794)
    """
    if not len(sampled):
        raise ValueError("sampled_softmax_loss needs at least one drawn item")
    own = (queries * positives).sum(1, keepdim=True)
    others = queries @ negatives.T - (log_q + math.log(len(sampled)))
    others = others.masked_fill(targets.unsqueeze(1) == sampled, -math.inf)
    return (torch.cat([own, others], 1).logsumexp(1) - own.squeeze(1)).mean()


def _uniformity(vectors: Tensor) -> Tensor:
    """Compute the uniformity; ||x - y||^2 = 2 - 2 x.y for unit vectors, so one matrix product gives all distances."""
    size = len(vectors)
    closeness = (4 * (vectors @ vectors.T - 1)).exp()
    different = closeness.sum() - closeness.diagonal().sum()
    return (different / (size * (size - 1))).log()
