"""Vectors per id from engines that pool bags."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor


def look_up_each(
    features: KeyedJaggedTensor,
    keys: Sequence[str],
    widths: Sequence[int],
    look_up: Callable[[Tensor, Tensor], Tensor],
    need_indices: bool = False,
) -> dict[str, JaggedTensor]:
    """Look up vectors per id by a look-up of bags.

    Each id is a bag; features alternate, because their numbers of ids differ.

    Args:
        features: the rows to read.
        keys: the keys of the result, one for each feature.
        widths: the widths of their vectors.
        look_up: a function from rows [N] and offsets [features * batch + 1] to [batch, sum of widths].
        need_indices: True to return the rows as the weights of the result.
    """
    sizes = features.length_per_key()
    longest = max(sizes, default=0)
    rows, lengths = features.values(), features.lengths().view(len(sizes), -1)
    if all(size == longest for size in sizes):
        offsets = torch.arange(rows.numel() + 1, device=rows.device)
    else:  # from the lengths, because numbers that the host sends would synchronise a GPU
        each = torch.arange(longest, device=rows.device) < lengths.sum(1, keepdim=True)
        offsets = F.pad(each.reshape(-1).cumsum(0), (1, 0))
    table = look_up(rows.long(), offsets)
    result, ids = {}, rows.split(sizes)
    parts = table.split(list(widths), dim=1)  # at once: the way back of each slice alone would fill a whole table
    for i, (key, size, part) in enumerate(zip(keys, sizes, parts, strict=True)):
        values = part if size == longest else part[:size]
        result[key] = JaggedTensor(values=values, lengths=lengths[i], weights=ids[i] if need_indices else None)
    return result
