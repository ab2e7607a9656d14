"""The exact search for the rows of largest product with a query, in blocks, so that no matrix of all scores is held."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from embcomp.ops import native
from embcomp.ops.checks import float32, int64, pointer, readable, size
from embcomp.ops.packed_columns import PackedColumns

_SCORES = 1 << 24  # scores at a time
_QUERIES = 1 << 12  # queries at a time


class Found(NamedTuple):
    """The result of a search, best first; among equal scores the lower row.

    Attributes:
        scores: the scores, float32 [queries, k].
        rows: the rows, int64 [queries, k].
    """

    scores: Tensor
    rows: Tensor


def best_of(scores: Tensor, rows: Tensor, k: int) -> Found:
    """Return the k best of each line, among equal scores the lower row: float32 [Q, n], int64 [Q, n] or [n] -> [Q, k].

    Example:
        >>> import torch
        >>> best_of(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), torch.tensor([4, 9, 7, 5]), k=2).rows
        tensor([[7, 9]])
    """
    rows = rows.expand(scores.shape)
    least = scores.topk(k).values[:, -1:]
    if bool(((scores >= least).sum(1) > k).any()):  # equal scores at the end: topk takes any of them
        order = rows.argsort(dim=1, stable=True)
        scores, rows = scores.gather(1, order), rows.gather(1, order)
        chosen = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
        return Found(scores.gather(1, chosen), rows.gather(1, chosen))
    chosen = scores.topk(k).indices
    scores, rows = scores.gather(1, chosen), rows.gather(1, chosen)
    order = rows.argsort(1)
    scores, rows = scores.gather(1, order), rows.gather(1, order)
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return Found(scores.gather(1, order), rows.gather(1, order))


def search_blocks(vectors: Callable[[Tensor], Tensor], rows: int, queries: Tensor, k: int) -> Found:
    """Return the k rows of largest inner product with each query, in plain torch.

    Args:
        vectors: a function from rows, int64 [n], to their vectors, float32 [n, width].
        rows: the number of rows.
        queries: the queries, float32 [Q, width].
        k: the number of results, at most `rows`.

    Example:
        >>> import torch
        >>> table = torch.tensor([[1.0], [5.0], [3.0]])
        >>> search_blocks(table.__getitem__, 3, torch.tensor([[2.0]]), k=2)
        Found(scores=tensor([[10.,  6.]]), rows=tensor([[1, 2]]))
    """
    results: list[Found] = []
    for batch in queries.split(_QUERIES):
        step = max(1, _SCORES // max(1, len(batch)))
        best = Found(batch.new_empty(len(batch), 0), torch.empty(len(batch), 0, dtype=torch.int64, device=batch.device))
        for start in range(0, rows, step):
            here = torch.arange(start, min(start + step, rows), device=batch.device)
            scores = torch.cat([best.scores, batch @ vectors(here).T], 1)
            places = torch.cat([best.rows, here.expand(len(batch), -1)], 1)
            best = best_of(scores, places, min(k, scores.shape[1]))
        results.append(best)
    return Found(torch.cat([each.scores for each in results]), torch.cat([each.rows for each in results]))


def code_search_reference(codes: PackedColumns, scales: Tensor | None, queries: Tensor, k: int) -> Found:
    """Compute `code_search` by its definition, in plain torch on any device."""

    def vectors(rows: Tensor) -> Tensor:
        centered = codes.centered(rows)
        return centered if scales is None else centered * scales[rows].unsqueeze(1)

    return search_blocks(vectors, codes.rows, queries, k)


@torch.no_grad()
def code_search(codes: PackedColumns, scales: Tensor | None, queries: Tensor, k: int) -> Found:
    """Return the k rows of largest scale * query . (codes - middle of their columns).

    The compiled form first computes products of 8-bit integers, which bound the scores, and then in full only the
    scores that may be among the k best. It runs on the calling thread.

    Args:
        codes: the rows.
        scales: the scale of each row, positive float32 [rows]; None for 1.
        queries: the queries, finite float32 [Q, columns].
        k: the number of results, 1 to `codes.rows`.

    Raises:
        ValueError: a shape does not fit.

    Example:
        >>> import torch
        >>> codes = PackedColumns.of(torch.tensor([[0, 3], [3, 3], [1, 0]], dtype=torch.uint8), ((2, 2),))
        >>> code_search(codes, None, torch.tensor([[1.0, -2.0]]), k=2)
        Found(scores=tensor([[ 2.5000, -1.5000]]), rows=tensor([[2, 1]]))
    """
    if not 1 <= k <= codes.rows:
        raise ValueError(f"k must lie in [1, {codes.rows}], the number of rows, got {k}")
    given = [tensor for tensor in (codes.data, scales, queries) if tensor is not None]
    lib = native.library() if queries.dtype == torch.float32 and readable(*given) else None
    if lib is None or not len(queries):
        return code_search_reference(codes, scales, queries, k)
    queries = queries.contiguous()
    count, groups = len(queries), len(codes.groups)
    bounds = torch.tensor(list(codes.bounds()), dtype=torch.int64).T.contiguous()
    kinds = torch.tensor(codes.groups, dtype=torch.int64).T.contiguous()
    if int(bounds[1, -1]) > codes.data.numel():
        raise ValueError(f"{codes.rows} rows take {int(bounds[1, -1])} bytes, there are {codes.data.numel()}")
    scores, rows = torch.empty(count, k), torch.empty(count, k, dtype=torch.int64)
    native.within_memory(
        lib.code_search,
        pointer("codes", codes.data, torch.uint8, codes.data.numel()), int64("starts", bounds[0], groups),
        int64("ends", bounds[1], groups), int64("columns", kinds[0], groups), int64("bits", kinds[1], groups),
        size(groups), float32("scales", scales, codes.rows), size(codes.rows),
        float32("queries", queries, count, codes.columns), size(count), size(k),
        float32("scores", scores, count, k), int64("rows", rows, count, k),
    )  # fmt: skip
    return Found(scores, rows)
