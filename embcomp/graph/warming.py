"""Rows for a new clustering from those that were trained under the old one. Needs torch alone."""

import torch
from torch import Tensor

from embcomp.graph.cluster_map import ClusterMap


@torch.no_grad()
def warm_rows(weight: Tensor, old: ClusterMap, new: ClusterMap, counts: Tensor | None = None) -> Tensor:
    """Return rows for a new map from those trained under an old one.

    A row becomes the mean of the rows that its ids read before, weighted by `counts`; if all of them read one row,
    exactly that row. Rows without such ids stay as they are.

    Args:
        weight: the trained rows, [old.rows, dim].
        old: the map that they were trained under.
        new: the new map, with as many rows (see `align`).
        counts: the number of times each id occurs, [old.num_ids]; by default all weigh alike.

    Returns:
        The rows, [new.rows, dim], in new memory.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> import torch
        >>> from embcomp.graph import ClusterMap, warm_rows
        >>> old, new = ClusterMap.of([0, 0, 1], rows=2), ClusterMap.of([0, 1, 1], rows=2)
        >>> warm_rows(torch.tensor([[2.0], [6.0]]), old, new)
        tensor([[2.],
                [4.]])
    """
    if weight.shape[0] != old.rows or new.rows != old.rows:
        raise ValueError(
            f"the table has {weight.shape[0]} rows, the old map {old.rows}, the new one {new.rows} (if ids have rows "
            "of their own: extend, or align with, the map that `with_own_rows` gave)"
        )
    if counts is not None and counts.shape != (old.num_ids,):
        raise ValueError(f"counts has shape {list(counts.shape)}, but the old map has {old.num_ids} ids")
    both = min(old.num_ids, new.num_ids)
    before, after = old.assignment()[:both], new.assignment()[:both]
    share = torch.ones(both, dtype=torch.float64) if counts is None else counts[:both].double().cpu()
    kept = (before >= 0) & (after >= 0) & (share > 0)
    before, after, share = (values[kept].to(weight.device) for values in (before, after, share))
    total = torch.zeros(new.rows, weight.shape[1], dtype=torch.float64, device=weight.device)
    total.index_add_(0, after, weight.double()[before] * share.unsqueeze(1))
    mass = torch.zeros(new.rows, dtype=torch.float64, device=weight.device).index_add_(0, after, share)
    most = torch.full((new.rows,), -1, device=weight.device).scatter_reduce_(0, after, before, "amax")
    least = torch.full((new.rows,), old.rows, device=weight.device).scatter_reduce_(0, after, before, "amin")
    result, one, mixed = weight.clone(), most == least, (most >= 0) & (most != least)
    result[one] = weight[most[one]]
    result[mixed] = (total[mixed] / mass[mixed].unsqueeze(1)).to(weight.dtype)
    return result
