"""Exact recall and NDCG of a full ranking: every item is a candidate."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from experiments.errors import Diverged
from experiments.processes import distributed

KS = (10, 20, 50)


def rank_metrics(
    model: nn.Module, known: Tensor, wanted: Tensor, num_items: int, batch_size: int, ks: tuple[int, ...] = KS
) -> dict[str, float]:
    """Return means over the users of `wanted`, each ranking all items but the known ones.

    If h of a user's n wanted items are among the first k, recall@k = h / min(k, n). ndcg@k is the sum of 1 / log2(place
    + 1) over the places 1 .. k that hold wanted items, divided by that of the first min(k, n) places.

    Compressed tables give items equal vectors and so equal scores. Ties are broken by a fixed random order of the
    items, not by their ids, which may correlate with popularity. Several processes share the blocks of users.

    Args:
        model: a `recsys_models.retrieval.RetrievalModel`, which is left in its mode (training or evaluation).
        known: the pairs of user and item that are not ranked, int64 [2, N].
        wanted: the pairs that should be at the top, int64 [2, M].
        batch_size: the number of users at a time.

    Returns:
        `recall@k` and `ndcg@k` for each k of `ks`.

    Raises:
        Diverged: scores are NaN or infinite.
    """
    device = wanted.device
    order = torch.randperm(num_items, generator=torch.Generator().manual_seed(0)).to(device)
    position = torch.argsort(order)
    known, wanted = (_sorted(torch.stack((users, position[items]))) for users, items in (known, wanted))
    users, counts = wanted[0].unique_consecutive(return_counts=True)
    most = min(max(ks), num_items)
    gains = 1 / torch.arange(2, max(ks) + 2, dtype=torch.float64, device=device).log2()
    best = gains.cumsum(0)
    sums = torch.zeros(2, len(ks), dtype=torch.float64, device=device)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            scorer = model.scorer(order)  # type: ignore[operator]
            part, parts = distributed.share()
            blocks = list(zip(users.split(batch_size), counts.split(batch_size), strict=True))
            for block, total in blocks[part::parts]:
                scores = scorer(block)
                scores[_cells(known, block)] = -math.inf
                values, first = scores.topk(most)
                if not bool((values < math.inf).all()):  # NaN sorts first, and is not below
                    sums += math.nan  # all processes are to hear of it
                    break
                relevant = torch.zeros(scores.shape, dtype=torch.bool, device=device)
                relevant[_cells(wanted, block)] = True
                hits = relevant.gather(1, first).double()
                for column, k in enumerate(ks):
                    limit = total.clamp(max=k)
                    sums[0, column] += (hits[:, :k].sum(1) / limit).sum()
                    sums[1, column] += (hits[:, :k] @ gains[: min(k, most)] / best[limit - 1]).sum()
    finally:
        model.train(training)
    distributed.sum_(sums)
    if bool(sums.isnan().any()):
        raise Diverged("the model returns NaN or infinite scores; lower the learning rate")
    recall, ndcg = (sums / len(users)).tolist()
    recalls = [(f"recall@{k}", value) for k, value in zip(ks, recall, strict=True)]
    return dict(recalls + [(f"ndcg@{k}", value) for k, value in zip(ks, ndcg, strict=True)])


def pair_auc(model: nn.Module, known: Tensor, wanted: Tensor, num_items: int, batch_size: int) -> float:
    """Return the probability that a wanted item is above one neither known nor wanted; ties count half.

    It is the mean over the wanted pairs; arguments are those of `rank_metrics`.
    """
    known, wanted = _sorted(known), _sorted(wanted)
    everything = torch.arange(num_items, device=wanted.device)
    won = torch.zeros((), dtype=torch.float64, device=wanted.device)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            scorer = model.scorer(everything)  # type: ignore[operator]
            for block in wanted[0].unique_consecutive().split(batch_size):
                scores = scorer(block)
                rows, columns = _cells(wanted, block)
                values = scores[rows, columns].unsqueeze(1)
                scores[_cells(known, block)] = math.nan  # NaN is neither above nor below
                scores[rows, columns] = math.nan
                others = scores[rows]
                above, equal = ((values > others).sum(1), (values == others).sum(1))
                won += ((above + equal / 2) / others.isfinite().sum(1)).double().sum()
    finally:
        model.train(training)
    return won.item() / wanted.shape[1]


def _sorted(pairs: Tensor) -> Tensor:
    return pairs[:, torch.argsort(pairs[0], stable=True)]


def _cells(pairs: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns of the pairs whose user is in `block`; both are sorted by user."""
    begin, end = torch.searchsorted(pairs[0], block[[0, -1]] + torch.tensor([0, 1], device=block.device)).tolist()
    users, columns = pairs[:, begin:end]
    rows = torch.searchsorted(block, users)
    inside = block[rows] == users
    return rows[inside], columns[inside]
