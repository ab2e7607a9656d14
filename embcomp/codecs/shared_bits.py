"""The choice of the bits of groups of rows, for all tables that share them."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from embcomp.ops.allotment import allot


def sizes_of(rows: int, groups: int) -> list[int]:
    """Return the number of rows of each group: the row of rank r is in group r * groups // rows.

    Example:
        >>> sizes_of(7, groups=3)
        [3, 2, 2]
    """
    ends = [-(-group * rows // groups) for group in range(groups + 1)]
    return [end - first for first, end in itertools.pairwise(ends)]


@torch.no_grad()
def share_bits(tables: Sequence[tuple[Any, Tensor]]) -> None:
    """Give the groups of all tables the bits that lose least, with no more bits and bytes than planned for all of them.

    The squared error of a row counts by the root of its reads in training. Where ids are in the order of their reads,
    another number of bits than the group before has takes the bits of a run.

    Args:
        tables: the codecs (`MixedGridCodec`) of equal `most`, each with the rows of its whole table, [rows, width].
    """
    codecs = [codec for codec, _ in tables]
    costs = torch.cat([codec.errors(stored).cpu() for codec, stored in tables])
    values = [size * codec.dim for codec in codecs for size in sizes_of(codec.rows, len(codec.mixed.bits))]
    room = sum(size * bits for size, bits in zip(values, (b for c in codecs for b in c.mixed.bits), strict=True))
    turns = [(len(codec.mixed.bits), codec.turn) for codec in codecs]
    nbytes = sum(codec.mixed.served_nbytes(codec.rows, codec.dim) for codec in codecs)
    while True:
        chosen = allot(costs, values, room / sum(values), turns).split([len(codec.mixed.bits) for codec in codecs])
        used = sum(c.mixed.served_with(own.tolist(), c.rows, c.dim) for c, own in zip(codecs, chosen, strict=True))
        if used <= nbytes:
            break
        room = max(0, room - 8 * (used - nbytes))  # each table ends with a whole word
    for codec, bits in zip(codecs, chosen, strict=True):
        codec.chosen.copy_(bits)
