"""Digits of the ids of many parts: quotients, remainders, and digits of a mixed radix."""

import torch
from torch import Tensor

from embcomp.ops.together.batch import LARGEST, Batch, Column
from embcomp.ops.together.launch import launch


def digits(batch: Batch, below: Column, radix: Column) -> Tensor:
    """Compute id // below % radix, int64 [N, 1].

    Args:
        batch: the ids.
        below: the product of the radices of the lower digits, for each part.
        radix: the number of values of the digit, for each part.
    """
    if not batch.in_one_launch:
        return digits_reference(batch, below, radix)
    out = batch.values.new_empty(sum(batch.sizes), 1, dtype=torch.int64)
    launch("digits_kernel", batch, [below, radix], out)
    return out


def digits_reference(batch: Batch, below: Column, radix: Column) -> Tensor:
    """Compute `digits` in plain torch."""
    lower, own = batch.each(below, radix)
    return batch.ids // lower % own


def own_rows(batch: Batch) -> Tensor:
    """Return the checked ids themselves, int64 [N, 1]."""
    if batch.in_one_launch:
        return digits(batch, [1] * len(batch.ids_of), [LARGEST] * len(batch.ids_of))
    return batch.ids
