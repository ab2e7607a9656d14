"""Rows summed up by bucket, and read again: on CPU by C++, with torch beside it for everything else.

A history of rows has a table of buckets [groups, width]; in each group every row lies in one bucket, its code. Summing
rows into buckets and reading buckets back for rows are each the other's gradient.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from embcomp.ops import native
from embcomp.ops.hashing import pointer, readable


def sign_codes(x: Tensor, hash_width: int) -> Tensor:
    """Signs to numbers, `hash_width` to a number, the first the lowest bit: float [..., m] -> int64 [..., m / width].

    Example:
        >>> import torch
        >>> sign_codes(torch.tensor([[1.0, -1.0, 2.0, -0.5, 3.0, 0.0]]), 3)
        tensor([[5, 2]])
    """
    shape = (*x.shape[:-1], x.shape[-1] // hash_width)
    if fast(x):
        codes = torch.empty(shape, dtype=torch.int64, device="cpu")
        x = x.contiguous()
        _library().sign_codes(pointer(x), _size(codes.numel()), _size(hash_width), pointer(codes))
        return codes
    bits = (x > 0).long().unflatten(-1, (shape[-1], hash_width))
    return (bits << torch.arange(hash_width, device=x.device)).sum(-1)


def fast(values: Tensor) -> bool:
    """Whether `scatter` and `gather` serve these values: float32 on CPU, outside of compiled graphs, with a library."""
    return values.dtype == torch.float32 and readable(values) and native.library() is not None


def scatter(
    values: Tensor, codes: Tensor, offsets: Tensor, width: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Bucket sums of histories that lie end to end, with gradients, and how many rows each holds; where `fast`.

    Args:
        values: float32 [T, D].
        codes: int64 [T, G], below `width`.
        offsets: int64 [B + 1], where each history begins and ends.
        width: buckets of a group.
        mask: bool [T], True for rows that count.

    Returns:
        sums float32 [B, G, width, D], counts float32 [B, G, width].
    """
    return _Scatter.apply(values, codes, offsets, width, mask)  # pyright: ignore[reportReturnType]


def gather(sums: Tensor, codes: Tensor, offsets: Tensor, mask: Tensor | None = None) -> Tensor:
    """The sum of each row's buckets in its history, one of each group, with gradients; where `fast`.

    Args:
        sums: float32 [B, G, width, D].
        codes: int64 [T, G].
        offsets: int64 [B + 1].
        mask: bool [T], False for rows that read nothing.

    Returns:
        float32 [T, D].
    """
    return _Gather.apply(sums, codes, offsets, mask)  # pyright: ignore[reportReturnType]


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, values: Tensor, codes: Tensor, offsets: Tensor, width: int, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(codes, offsets, mask)
        sums, counts = _scatter(values, codes, offsets, width, mask)
        ctx.mark_non_differentiable(counts)
        return sums, counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        codes, offsets, mask = ctx.saved_tensors
        return _gather(grads[0], codes, offsets, mask), None, None, None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, sums: Tensor, codes: Tensor, offsets: Tensor, mask: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(codes, offsets, mask)
        ctx.width = sums.shape[2]
        return _gather(sums, codes, offsets, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        codes, offsets, mask = ctx.saved_tensors
        return _scatter(grads[0], codes, offsets, ctx.width, mask)[0], None, None, None


def _scatter(values: Tensor, codes: Tensor, offsets: Tensor, width: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, groups, dim = offsets.numel() - 1, codes.shape[1], values.shape[1]
    sums = torch.zeros(batch, groups, width, dim, device="cpu")
    counts = torch.zeros(batch, groups, width, device="cpu")
    values, codes, offsets, mask = _plain(values, codes, offsets, mask)
    _library().bucket_scatter(
        pointer(values), _size(dim), pointer(codes), pointer(mask), pointer(offsets), _size(batch), _size(groups),
        _size(width), pointer(sums), pointer(counts),
    )  # fmt: skip
    return sums, counts


def _gather(sums: Tensor, codes: Tensor, offsets: Tensor, mask: Tensor | None) -> Tensor:
    batch, groups, width, dim = sums.shape
    out = torch.empty(len(codes), dim, device="cpu")
    sums, codes, offsets, mask = _plain(sums, codes, offsets, mask)
    _library().bucket_gather(
        pointer(sums), _size(dim), pointer(codes), pointer(mask), pointer(offsets), _size(batch), _size(groups),
        _size(width), pointer(out),
    )  # fmt: skip
    return out


def _plain(*tensors: Any) -> Any:
    """As C++ reads them; the caller keeps what comes back until the call has ended."""
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def _library() -> ctypes.CDLL:
    library = native.library()
    assert library is not None
    return library


def _size(number: int) -> ctypes.c_size_t:
    return ctypes.c_size_t(number)
