"""The rank of the next item among all items, and metrics of these ranks, without sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from data.next_items import NextItems
from experiments.errors import Diverged
from experiments.processes import distributed
from recsys_models.sequence import SequenceModel

KS = (10, 50)


def ranks_of(
    model: SequenceModel, events: NextItems, split: str, length: int, batch_size: int, device: torch.device
) -> Tensor:
    """Return the rank of each user's next item, from 1, among all items not in the user's past: int64 [U].

    Compressed tables give items equal vectors and so equal scores. Ties are broken by a fixed random order of the
    items, not by their ids, which may correlate with popularity. Several processes share the users.

    Args:
        model: the model, which is left in its mode (training or evaluation).
        events: the events of all users.
        split: "valid" or "test".
        length: the number of latest events that the model reads.
        batch_size: the number of users at a time.
        device: the device of the model.

    Raises:
        Diverged: scores are NaN or infinite.
    """
    order = torch.randperm(events.num_items, generator=torch.Generator().manual_seed(0))
    column = torch.argsort(order)
    known, wanted = events.known(split), column[events.targets(split)]
    begins = torch.searchsorted(known[0], torch.arange(events.num_users + 1)).tolist()
    ranks = torch.zeros(events.num_users, dtype=torch.int64)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            scorer = model.scorer(order.to(device))
            turn, turns = distributed.share()
            for users in torch.arange(events.num_users).split(batch_size)[turn::turns]:
                batch = events.histories(split, users, length).to(device)
                scores = scorer(batch.history, batch.mask).float().cpu()
                if not bool(scores.isfinite().all()):
                    ranks[users] = -1  # all processes are to hear of it
                    break
                past = known[:, begins[int(users[0])] : begins[int(users[-1]) + 1]]
                scores[past[0] - users[0], column[past[1]]] = -math.inf
                target = wanted[users].unsqueeze(1)
                own = scores.gather(1, target)
                before = torch.arange(events.num_items) < target
                ranks[users] = 1 + ((scores > own) | ((scores == own) & before)).sum(1)
    finally:
        model.train(training)
    ranks = ranks.to(device)
    distributed.sum_(ranks)
    if bool((ranks < 1).any()):
        raise Diverged("the model returns NaN or infinite scores; lower the learning rate")
    return ranks.cpu()


def next_item_metrics(ranks: Tensor, slices: Mapping[str, Tensor], ks: tuple[int, ...] = KS) -> dict[str, float]:
    """Return means over users of `recall@k`, 1 if the item is among the first k, and `ndcg@k`, then 1 / log2(rank + 1).

    Args:
        ranks: the ranks, int64 [U], from 1.
        slices: the users of each slice, bool [U], by name: `<metric>/<slice>` and `rows/<slice>`.
        ks: the numbers of first ranks that count.
    """
    metrics: dict[str, float] = {}
    for k in ks:
        hit = (ranks <= k).double()
        values = {f"recall@{k}": hit, f"ndcg@{k}": hit / (ranks + 1).double().log2()}
        metrics |= {name: value.mean().item() for name, value in values.items()}
        for slice_name, users in slices.items():
            if bool(users.any()):
                metrics |= {f"{name}/{slice_name}": value[users].mean().item() for name, value in values.items()}
    return metrics | {f"rows/{slice_name}": int(users.sum()) for slice_name, users in slices.items()}
