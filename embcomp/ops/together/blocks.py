"""Rows of an array that is read at hashed places, for many parts (`ROBE`)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from embcomp.ops.hashing import hash_rows_each
from embcomp.ops.together.batch import Batch, Column
from embcomp.ops.together.launch import addresses, launch


def blocks(batch: Batch, keys: Sequence[Tensor], first: Column, size: Column, width: Column, after: Column) -> Tensor:
    """Compute the row of an array that holds the hashed place of each id, or the row after it.

    Args:
        batch: the ids.
        keys: the tensor of keys of each part, int64 [any], from `hash_key`.
        first: the position of each part's key in its tensor.
        size: the number of entries of each part's array, a multiple of `width`.
        width: the number of entries of a row.
        after: 1 for the next row, where the array wraps; else 0.

    Returns:
        The rows, int64 [N, 1].
    """
    if not batch.in_one_launch:
        return blocks_reference(batch, keys, first, size, width, after)
    out = batch.values.new_empty(sum(batch.sizes), 1, dtype=torch.int64)
    launch("blocks_kernel", batch, [addresses(batch, keys, first), size, width, after], out)
    return out


def blocks_reference(
    batch: Batch, keys: Sequence[Tensor], first: Column, size: Column, width: Column, after: Column
) -> Tensor:
    """Compute `blocks` in plain torch."""
    whole, starts = batch.joined(keys)
    rows = [own // row for own, row in zip(size, width, strict=True)]
    at, entries, each, number, further = batch.each(
        [start + own for start, own in zip(starts, first, strict=True)], size, width, rows, after
    )
    places = hash_rows_each(batch.ids, whole[at], entries)
    return (places // each + further) % number
