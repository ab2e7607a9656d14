"""The bucket sums of histories, which are what SDIM keeps of a user, whatever the number of events."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

MATMUL_BUCKETS = 32
"""The most buckets of a group for which a product with one-hot rows is faster than adding events one by one."""


class Buckets(NamedTuple):
    """The bucket sums and counts of B histories, not normalised, so that events can be added and removed.

    Attributes:
        sums: the sums of the events' vectors, float [B, groups, 2^hash_width, D].
        counts: the number of events in each sum, float32 [B, groups, 2^hash_width].
    """

    sums: Tensor
    counts: Tensor


def sum_padded(codes: Tensor, sequence: Tensor, mask: Tensor, width: int) -> Buckets:
    """Return the bucket sums of padded histories.

    Args:
        codes: the bucket of each event in each group, int64 [B, L, G], below `width`.
        sequence: the events' vectors, float [B, L, D]; zero where masked.
        mask: bool [B, L], True for events.
        width: the number of buckets of a group.
    """
    batch, length, groups = codes.shape
    if width > MATMUL_BUCKETS:
        segment = torch.arange(batch, device=codes.device).repeat_interleave(length)
        return sum_jagged(codes.flatten(0, 1), sequence.flatten(0, 1), segment, batch, width, mask.flatten())
    hits = (codes.unsqueeze(-1) == torch.arange(width, device=codes.device)) & mask[:, :, None, None]
    hits = hits.flatten(2).to(sequence.dtype)
    sums = hits.transpose(1, 2) @ sequence
    counts = hits.sum(1, dtype=torch.float32)
    return Buckets(sums.view(batch, groups, width, sequence.shape[2]), counts.view(batch, groups, width))


def sum_jagged(
    codes: Tensor, values: Tensor, segment: Tensor, batch: int, width: int, mask: Tensor | None = None
) -> Buckets:
    """Return the bucket sums of histories that are concatenated.

    Args:
        codes: the bucket of each event in each group, int64 [T, G].
        values: the events' vectors, float [T, D]; zero where masked.
        segment: the history of each event, int64 [T], below `batch`.
        batch: the number of histories.
        width: the number of buckets of a group.
        mask: bool [T], True for events; None for all.
    """
    ones = torch.ones_like(codes[:, 0], dtype=torch.float32) if mask is None else mask.float()
    sums, counts = [], []
    for group in codes.unbind(1):  # group by group: all at once would copy every event `groups` times
        rows = segment * width + group
        sums.append(values.new_zeros(batch * width, values.shape[1]).index_add(0, rows, values))
        counts.append(ones.new_zeros(batch * width).index_add(0, rows, ones))
    return Buckets(
        torch.stack([part.view(batch, width, values.shape[1]) for part in sums], dim=1),
        torch.stack([part.view(batch, width) for part in counts], dim=1),
    )


def read(sums: Tensor, codes: Tensor) -> Tensor:
    """Add up the buckets that each candidate reads: sums [B, G, width, D], codes int64 [B, C, G] -> [B, C, D]."""
    batch, number, groups = codes.shape
    tables = torch.arange(batch * groups, device=codes.device).view(batch, 1, groups)
    rows = (tables * sums.shape[2] + codes).flatten(0, 1)
    pooled = nn.functional.embedding_bag(rows, sums.reshape(-1, sums.shape[3]), mode="sum")
    return pooled.view(batch, number, sums.shape[3])


def segments(offsets: Tensor, total: int) -> Tensor:
    """Return the history of each of `total` events, int64 [total], from int64 offsets [B + 1].

    Example:
        >>> import torch
        >>> segments(torch.tensor([0, 2, 2, 3]), 3)
        tensor([0, 0, 2])
    """
    places = torch.arange(total, device=offsets.device)
    return torch.searchsorted(offsets.contiguous(), places, right=True) - 1


def unit(x: Tensor) -> Tensor:
    """Divide vectors by their length; the zero vector stays zero, with a finite gradient."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # squares of float16 end at 256 x 256
    square = wide.square().sum(-1, keepdim=True)
    return (wide * torch.where(square > 0, square, 1.0).rsqrt()).to(x.dtype)
