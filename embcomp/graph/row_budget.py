"""The exact number of rows: merges and splits of clusters, each time those that cost the least quality.

A cluster gives a row to the users' table if it holds a user, and one to the items' table if it holds an item.
"""

import numpy as np

from embcomp.graph.partition import Problem, numbered


def count_rows(problem: Problem, labels: np.ndarray) -> tuple[int, int]:
    """Return (rows for users, rows for items)."""
    split = problem.users.size
    return int(np.unique(labels[:split]).size), int(np.unique(labels[split:]).size)


def to_rows(problem: Problem, labels: np.ndarray, gamma: float, rows: int | tuple[int, int]) -> np.ndarray:
    """Return labels with exactly so many rows.

    Args:
        problem: the graph.
        labels: the initial labels, int32 [n].
        gamma: the price of volume, as in `Problem`.
        rows: the number of rows of both tables together, or (users, items); at least one each, at most one for each
            vertex.

    Returns:
        The labels, int32 [n], numbered from 0.
    """
    labels = _merged(problem, numbered(labels), gamma, rows)
    users, items = count_rows(problem, labels)
    if isinstance(rows, tuple):
        labels = _split(problem, labels, gamma, rows[0] - users, "users")
        labels = _split(problem, labels, gamma, rows[1] - items, "items")
    else:
        labels = _split(problem, labels, gamma, rows - users - items, "both")
    return numbered(labels)


def _merged(problem: Problem, labels: np.ndarray, gamma: float, rows: int | tuple[int, int]) -> np.ndarray:
    """Merge clusters, a matching of the best pairs at a time, until neither table has too many rows."""
    split = problem.users.size
    while True:
        n = int(labels.max()) + 1
        has_user = np.bincount(labels[:split], minlength=n) > 0
        has_item = np.bincount(labels[split:], minlength=n) > 0
        excess = [int(has_user.sum()), int(has_item.sum())]
        if isinstance(rows, tuple):
            excess = [excess[0] - rows[0], excess[1] - rows[1]]
        else:
            excess = [excess[0] + excess[1] - rows]
        if max(excess) <= 0:
            return labels
        first, second = _pairs(problem, labels, gamma, n)
        # What a merge saves: a row of each table in which both clusters have one.
        saved = [has_user[first] & has_user[second], has_item[first] & has_item[second]]
        if not isinstance(rows, tuple):
            saved = [saved[0].astype(np.int64) + saved[1]]
        chosen = _matching(first, second, np.stack(saved, axis=1).astype(np.int64), np.array(excess), n)
        if not chosen:  # no edge between clusters that would help: the smallest go together
            if isinstance(rows, tuple):
                side = has_user if excess[0] > 0 else has_item
            else:
                side = has_user if has_user.sum() > has_item.sum() else has_item
            sizes = np.bincount(labels, minlength=n)
            order = np.flatnonzero(side)[np.argsort(sizes[side], kind="stable")]
            pairs = min(max(excess), order.size // 2)
            chosen = list(zip(order[: 2 * pairs : 2].tolist(), order[1 : 2 * pairs : 2].tolist(), strict=True))
        into = np.arange(n, dtype=np.int32)
        for a, b in chosen:
            into[b] = a
        labels = numbered(into[labels])


def _pairs(problem: Problem, labels: np.ndarray, gamma: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of clusters with an edge between them, in the order of the gain of their merge."""
    a, b = labels[problem.sources], labels[problem.targets]
    between = a != b
    key = np.minimum(a, b)[between].astype(np.int64) * n + np.maximum(a, b)[between]
    pairs, pair_of_edge = np.unique(key, return_inverse=True)
    weight = np.bincount(
        pair_of_edge, None if problem.weights is None else problem.weights[between], minlength=pairs.size
    )
    first, second = pairs // n, pairs % n
    out, inn = np.bincount(labels, problem.out), np.bincount(labels, problem.inn)
    gain = weight - gamma * (out[first] * inn[second] + inn[first] * out[second])
    order = np.argsort(-gain, kind="stable")
    return first[order], second[order]


def _matching(
    first: np.ndarray, second: np.ndarray, saved: np.ndarray, excess: np.ndarray, n: int
) -> list[tuple[int, int]]:
    """Choose pairs in order, each cluster once, as long as they save rows that are in excess."""
    useful = saved[:, excess > 0].any(axis=1)
    free, left, chosen = [True] * n, excess.tolist(), []
    columns = range(len(left))
    for a, b, saves in zip(first[useful].tolist(), second[useful].tolist(), saved[useful].tolist(), strict=True):
        if free[a] and free[b] and any(left[i] > 0 and saves[i] for i in columns):
            free[a] = free[b] = False
            chosen.append((a, b))
            left = [left[i] - saves[i] for i in columns]
            if max(left) <= 0:
                break
    return chosen


def _split(problem: Problem, labels: np.ndarray, gamma: float, more: int, side: str) -> np.ndarray:
    """Move the `more` vertices of a side that lose least out of their clusters; one of a side stays in each."""
    if more == 0:
        return labels
    split, n = problem.users.size, labels.size
    is_user = np.arange(n) < split
    same = labels[problem.sources] == labels[problem.targets]
    weights = None if problem.weights is None else problem.weights[same]
    edges = np.bincount(problem.sources[same], weights, minlength=n)
    edges = edges + np.bincount(problem.targets[same], weights, minlength=n)
    out, inn = np.bincount(labels, problem.out)[labels], np.bincount(labels, problem.inn)[labels]
    loss = edges - gamma * (problem.out * (inn - problem.inn) + problem.inn * (out - problem.out))
    # Ordered by cluster and side, then by loss: the last of each group stays.
    group = labels.astype(np.int64) * 2 + is_user
    order = np.lexsort((loss, group))
    last = np.append(group[order][1:] != group[order][:-1], True)
    may_leave = order[~last]
    if side != "both":
        may_leave = may_leave[is_user[may_leave] == (side == "users")]
    leaving = may_leave[np.argsort(loss[may_leave], kind="stable")[:more]]
    labels = labels.copy()
    labels[leaving] = labels.max() + 1 + np.arange(leaving.size, dtype=np.int32)
    return labels
