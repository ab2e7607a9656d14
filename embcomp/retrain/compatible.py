"""Compatibility of two trainings: whether new queries find old items, and the other way round."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embcomp.formats import text_table

_BLOCK = 1024  # queries at a time

Pair = tuple[Tensor, Tensor]
"""The vectors of queries [Q, dim] and of items [I, dim]."""


@dataclass(frozen=True)
class Compatibility:
    """The recall at k of queries of one training on items of another; `print` shows it as a table.

    Attributes:
        k: the number of items that are looked at.
        new_new: the recall of new queries on new items.
        new_old: the recall of new queries on old items: today's model on yesterday's index.
        old_new: the recall of old queries on new items.
        half: the recall of new queries on an index in which every second item is new, as in the middle of a refill.
        old_old: the recall of old queries on old items.
    """

    k: int
    new_new: float
    new_old: float
    old_new: float
    half: float
    old_old: float

    def __str__(self) -> str:
        rows = [
            ("new queries", f"{self.new_new:.4f}", f"{self.new_old:.4f}", f"{self.half:.4f}"),
            ("old queries", f"{self.old_new:.4f}", f"{self.old_old:.4f}", ""),
        ]
        return text_table((f"R@{self.k}", "new items", "old items", "half refilled"), rows, left=1)


@torch.no_grad()
def compatible(
    new: Pair, old: Pair, queries: Tensor, *, k: int = 10, known: Tensor | None = None, seed: int = 0
) -> Compatibility:
    """Measure the recall of every mixture of two trainings: the cost of an index that is not refilled yet.

    Ids that only the new training has are left out, so that all mixtures answer the same queries.

    Args:
        new: the vectors of queries and of items of the new training.
        old: those of the earlier training, with at most as many ids and the same width.
        queries: pairs of a query and an item that it should find, int64 [2, E].
        k: the number of items that are looked at.
        known: pairs to leave out of the results (those of the training), int64 [2, N].
        seed: the seed of the items that are new in a half refilled index.

    Raises:
        ValueError: vectors differ in width or hold NaN, pairs are out of range, or k exceeds the number of items.

    Example:
        >>> import torch, embcomp
        >>> users, items = torch.eye(4), torch.eye(4)
        >>> wanted = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3]])
        >>> print(embcomp.compatible((users.flip(1), items.flip(1)), (users, items), wanted, k=1))
        R@1          new items  old items  half refilled
        new queries     1.0000     0.0000         0.5000
        old queries     0.0000     1.0000
    """
    (new_queries, new_items), (old_queries, old_items) = _checked(new, "new"), _checked(old, "old")
    width = {vectors.shape[1] for vectors in (new_queries, new_items, old_queries, old_items)}
    if len(width) > 1:
        raise ValueError(f"vectors of the widths {sorted(width)} cannot be compared: they are of different models")
    numbers = min(len(new_queries), len(old_queries)), min(len(new_items), len(old_items))
    if not 1 <= k <= numbers[1]:
        raise ValueError(f"k={k} items were asked for, {numbers[1]} are common to both")
    wanted, known = _pairs(queries, numbers, "queries"), None if known is None else _pairs(known, numbers, "known")
    if not wanted.shape[1]:
        raise ValueError("queries holds no pair of ids that both trainings know")
    new_queries, old_queries = new_queries[: numbers[0]], old_queries[: numbers[0]]
    new_items, old_items = new_items[: numbers[1]], old_items[: numbers[1]]
    mixed = old_items.clone()
    refilled = torch.randperm(numbers[1], generator=torch.Generator().manual_seed(seed))[: numbers[1] // 2]
    mixed[refilled] = new_items[refilled]
    cells = [(new_queries, new_items), (new_queries, old_items), (old_queries, new_items), (new_queries, mixed)]
    recalls = [_recall(q, i, wanted, known, k) for q, i in [*cells, (old_queries, old_items)]]
    return Compatibility(k, *recalls)


def _checked(pair: Sequence[Tensor], name: str) -> Pair:
    if len(pair) != 2 or not all(isinstance(v, Tensor) and v.ndim == 2 for v in pair):
        raise ValueError(f"{name} must be the vectors of queries [Q, dim] and of items [I, dim]")
    if not all(bool(vectors.isfinite().all()) for vectors in pair):
        raise ValueError(f"{name} holds NaN or infinite values")
    return pair[0].detach().float(), pair[1].detach().float()


def _pairs(pairs: Tensor, numbers: tuple[int, int], name: str) -> Tensor:
    if pairs.ndim != 2 or pairs.shape[0] != 2 or pairs.is_floating_point():
        raise ValueError(f"{name} must be pairs, integers [2, E], got {pairs.dtype} {list(pairs.shape)}")
    if pairs.numel() and int(pairs.min()) < 0:
        raise ValueError(f"{name} holds the id {int(pairs.min())}")
    return pairs[:, (pairs[0] < numbers[0]) & (pairs[1] < numbers[1])]


def _recall(queries: Tensor, items: Tensor, wanted: Tensor, known: Tensor | None, k: int) -> float:
    """The mean over queries of the share of wanted items among the k best, relative to at most k."""
    asked, positions, number = wanted[0].unique(return_inverse=True, return_counts=True)
    hits = torch.zeros(len(asked))
    for start in range(0, len(asked), _BLOCK):
        block = asked[start : start + _BLOCK]
        scores = queries[block] @ items.T
        if known is not None:
            row = torch.searchsorted(block, known[0])
            seen = (row < len(block)) & (block[row.clamp(max=len(block) - 1)] == known[0])
            scores[row[seen], known[1][seen]] = -torch.inf
        top = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(k).indices, True)
        mine = (positions >= start) & (positions < start + len(block))
        hit = top[positions[mine] - start, wanted[1][mine]]
        hits.index_add_(0, positions[mine], hit.float())
    return float((hits / number.clamp(max=k)).mean())
