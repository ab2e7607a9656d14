"""Sums of rows by bucket, and reads of these: by C++ on CPU, and by torch for everything else.

A history of events has a table of buckets [groups, width]; in each group every event lies in one bucket, its code. An
event's codes are packed into its signature (`embcomp.sdim.signatures`). Summing events into buckets, and reading the
buckets of events, are the gradients of each other.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from embcomp.ops import native
from embcomp.ops.checks import (
    check_inside,
    check_offsets,
    check_unchanged,
    float32,
    int64,
    pointer,
    readable,
    size,
    versions,
)

# What C functions read and write, whatever torch.set_default_dtype and set_default_device say.
_FLOAT: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}


class Histories(NamedTuple):
    """The events of B histories, end to end, T in all; each is a row of a matrix [N, D] with a signature per row.

    Attributes:
        signatures: the signatures of the rows, int64 [N, words].
        offsets: the bounds of the histories, int64 [B + 1].
        groups: the number of groups of a signature.
        hash_width: the bits of a group, which has 2^hash_width buckets.
        mask: True for events that count, bool [T]; None if all count.
        places: the row of each event, int64 [T]; None if event t is row t, and so N = T.
    """

    signatures: Tensor
    offsets: Tensor
    groups: int
    hash_width: int
    mask: Tensor | None = None
    places: Tensor | None = None

    @property
    def batch(self) -> int:
        return self.offsets.numel() - 1


def words_for(groups: int, hash_width: int) -> int:
    """Return how many int64 hold a signature: one for up to 63 bits."""
    return -(-groups // (63 // hash_width))


def sign_codes(x: Tensor, hash_width: int) -> Tensor:
    """Pack signs into numbers of `hash_width` bits, the first sign lowest: float [..., m] -> int64 [..., m / width].

    Example:
        >>> import torch
        >>> sign_codes(torch.tensor([[1.0, -1.0, 2.0, -0.5, 3.0, 0.0]]), 3)
        tensor([[5, 2]])
    """
    bits = (x > 0).long().unflatten(-1, (x.shape[-1] // hash_width, hash_width))
    return (bits << torch.arange(hash_width, device=x.device)).sum(-1)


def fast(values: Tensor) -> bool:
    """Return whether the functions below accept these values: float32 on CPU, not in a compiled graph, and compiled."""
    return values.dtype == torch.float32 and readable(values) and native.library() is not None


def sign_signatures(x: Tensor, matrix: Tensor | None, hash_width: int) -> Tensor:
    """Pack the signs of x · matrix, or of x alone: float32 [..., D] and [D, m] -> int64 [..., words]; only if `fast`.

    A row's signature does not depend on the other rows. A matrix product of BLAS does not guarantee that: its order of
    summation depends on the shape, and a sum near zero may change its sign.
    """
    number = x.shape[-1] if matrix is None else matrix.shape[1]
    words = words_for(number // hash_width, hash_width)
    signatures = torch.empty(*x.shape[:-1], words, dtype=torch.int64, device="cpu")
    x, matrix = _plain(x.detach(), matrix)
    native.within_memory(
        _library().sign_words,
        float32("x", x, *x.shape), size(x.shape[:-1].numel()), size(x.shape[-1]),
        float32("matrix", matrix, x.shape[-1], number), size(number), size(63 // hash_width * hash_width),
        int64("signatures", signatures, *signatures.shape),
    )  # fmt: skip
    return signatures


def scatter(values: Tensor, events: Histories) -> tuple[Tensor, Tensor]:
    """Sum events into the buckets of their histories, and count them; gradients go to values [N, D]; only if `fast`.

    Returns:
        The sums, float32 [B, groups, 2^hash_width, D], and the counts, float32 [B, groups, 2^hash_width].

    Raises:
        IndexError: a place is not a row of the values.
    """
    return _Scatter.apply(values, _checked(len(values), events))  # pyright: ignore[reportReturnType]


def gather(sums: Tensor, events: Histories) -> Tensor:
    """Sum the buckets of each event in its history, one per group, with gradients to the sums; only if `fast`.

    Args:
        sums: the bucket sums, float32 [B, groups, 2^hash_width, D].
        events: the events that read, without places.

    Returns:
        The sum of each event's buckets, float32 [T, D].
    """
    return _Gather.apply(sums, _checked(len(events.signatures), events))  # pyright: ignore[reportReturnType]


def unit_rows(rows: Tensor, scale: float = 1.0) -> Tensor:
    """Divide rows [..., D] by their lengths, times `scale`; zeros stay zeros with zero gradient; only if `fast`."""
    return _Unit.apply(rows, scale)  # pyright: ignore[reportReturnType]


def query(
    asked: Tensor,
    signatures: Tensor | None,
    matrix: Tensor | None,
    sums: Tensor,
    hash_width: int,
    *,
    counts: Tensor | None = None,
    unit: bool = False,
    weights: Tensor | None = None,
) -> Tensor:
    """Run `sign_signatures`, a rescaling of the buckets and `gather` in one call, without gradients; if `fast`.

    Args:
        asked: the candidates, float32 [B, C, D].
        signatures: the signatures of the candidates, int64 [B, C, words]; None for the signs of asked · `matrix`.
        matrix: the projection, float32 [D, m].
        sums: the bucket sums, float32 [B, groups, 2^hash_width, D].
        hash_width: the bits of a group.
        counts: the bucket counts, float32 [B, groups, 2^hash_width], by which each candidate's sum is divided; or None.
        unit: True to divide each bucket by its length (`unit_rows`), and the sum by the number of groups.
        weights: only without `unit`, float32 [B, hash_width + 1]: a candidate reads all buckets of a group, each
            weighted by the number of bits that differ from the candidate's code.

    Returns:
        The result for each candidate, float32 [B, C, D].
    """
    asked, signatures, matrix, sums, counts, weights = _plain(asked, signatures, matrix, sums, counts, weights)
    out = torch.empty(asked.shape, dtype=torch.float32, device="cpu")
    batch, candidates, dim = asked.shape
    groups, width = sums.shape[1], 2**hash_width
    if signatures is None and matrix is None:
        raise ValueError("query needs signatures, or the matrix that gives them")
    native.within_memory(
        _library().bucket_query,
        float32("asked", asked, *asked.shape),
        int64("signatures", signatures, batch, candidates, words_for(groups, hash_width)),
        size(batch), size(candidates), size(dim), float32("matrix", matrix, dim, groups * hash_width),
        size(groups), size(hash_width), float32("sums", sums, batch, groups, width, dim),
        float32("counts", counts, batch, groups, width), ctypes.c_float(unit / groups),
        float32("weights", weights, batch, hash_width + 1), float32("out", out, *out.shape),
    )  # fmt: skip
    return out


def collide(values: Tensor, events: Histories, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the events that agree with candidates, by group, with gradients to values [N, D]; only if `fast`.

    This equals the candidates' reads from the buckets, without computing the buckets that no candidate reads.

    Args:
        values: the values, float32 [N, D].
        events: the events of the histories.
        asked: the signatures of each history's candidates, int64 [B, C, words].

    Returns:
        The sums, float32 [B, C, groups, D], and the counts, float32 [B, C, groups].

    Raises:
        IndexError: a place is not a row of the values.
    """
    return _Collide.apply(values, _checked(len(values), events), asked)  # pyright: ignore[reportReturnType]


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, values: Tensor, events: Histories
    ) -> tuple[Tensor, Tensor]:
        ctx.events, ctx.rows, ctx.versions = events, len(values), _versions(events)
        sums, counts = _scatter(values, events)
        ctx.mark_non_differentiable(counts)
        return sums, counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        check_unchanged(ctx.versions, *_tensors(ctx.events))
        return _gather(grads[0], ctx.events, ctx.rows), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sums: Tensor, events: Histories) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.events, ctx.versions = events, _versions(events)
        return _gather(sums, events, len(events.signatures))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        check_unchanged(ctx.versions, *_tensors(ctx.events))
        return _scatter(grads[0], ctx.events)[0], None


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, scale: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (rows,) = _plain(rows)
        scales, out = torch.empty(rows.shape[:-1], **_FLOAT), torch.empty_like(rows)
        ctx.sizes = size(scales.numel()), size(rows.shape[-1]), ctypes.c_float(scale)
        _library().unit_rows(
            float32("rows", rows, *rows.shape), *ctx.sizes, float32("scales", scales, *scales.shape),
            float32("out", out, *out.shape),
        )  # fmt: skip
        ctx.save_for_backward(rows, scales)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, scales = ctx.saved_tensors
        gradient = grads[0].clone(memory_format=torch.contiguous_format)
        _library().unit_rows_backward(
            float32("rows", rows, *rows.shape), float32("scales", scales, *scales.shape), *ctx.sizes,
            float32("gradient", gradient, *rows.shape),
        )  # fmt: skip
        return gradient, None


class _Collide(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, values: Tensor, events: Histories, asked: Tensor
    ) -> tuple[Tensor, Tensor]:
        asked = asked.contiguous()
        ctx.events, ctx.asked, ctx.rows = events, asked, len(values)
        ctx.versions = versions(asked, *_tensors(events))
        shape = (*asked.shape[:2], events.groups)
        sums, counts = torch.zeros(*shape, values.shape[1], **_FLOAT), torch.zeros(shape, **_FLOAT)
        (values,) = _plain(values)
        native.within_memory(
            _library().bucket_collide,
            float32("values", values, len(values), values.shape[1]), *_arguments(events, len(values), values.shape[1]),
            *_asked(events, asked), float32("sums", sums, *sums.shape), float32("counts", counts, *counts.shape),
        )  # fmt: skip
        ctx.mark_non_differentiable(counts)
        return sums, counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        check_unchanged(ctx.versions, ctx.asked, *_tensors(ctx.events))
        (grad,) = _plain(grads[0])
        out = torch.zeros(ctx.rows, grad.shape[3], **_FLOAT)
        native.within_memory(
            _library().bucket_collide_backward,
            float32("gradient", grad, *ctx.asked.shape[:2], ctx.events.groups, grad.shape[3]),
            *_arguments(ctx.events, ctx.rows, grad.shape[3]), *_asked(ctx.events, ctx.asked),
            float32("out", out, *out.shape),
        )  # fmt: skip
        return out, None, None


def _scatter(values: Tensor, events: Histories) -> tuple[Tensor, Tensor]:
    shape = (events.batch, events.groups, 2**events.hash_width)
    sums, counts = torch.zeros(*shape, values.shape[1], **_FLOAT), torch.zeros(shape, **_FLOAT)
    (values,) = _plain(values)
    _library().bucket_scatter(
        float32("values", values, len(values), values.shape[1]), *_arguments(events, len(values), values.shape[1]),
        float32("sums", sums, *sums.shape), float32("counts", counts, *counts.shape),
    )  # fmt: skip
    return sums, counts


def _gather(sums: Tensor, events: Histories, rows: int) -> Tensor:
    dim = sums.shape[3]
    whole = events.places is None and (int(events.offsets[0]), int(events.offsets[-1])) == (0, rows)
    out = (torch.empty if whole else torch.zeros)(rows, dim, **_FLOAT)  # rows without an event are not written
    (sums,) = _plain(sums)
    _library().bucket_gather(
        float32("sums", sums, events.batch, events.groups, 2**events.hash_width, dim),
        *_arguments(events, rows, dim), float32("out", out, *out.shape),
    )  # fmt: skip
    return out


def _checked(rows: int, events: Histories) -> Histories:
    """Make the tensors contiguous. Raise ValueError or IndexError if the events do not fit so many rows."""
    signatures, offsets, mask, places = _plain(events.signatures, events.offsets, events.mask, events.places)
    events = events._replace(signatures=signatures, offsets=offsets, mask=mask, places=places)
    check_offsets(offsets, rows if places is None else places.numel())
    if places is not None:
        check_inside(places[int(offsets[0]) : int(offsets[-1])], rows)
    return events


def _tensors(events: Histories) -> tuple[Tensor | None, ...]:
    return events.signatures, events.offsets, events.mask, events.places


def _versions(events: Histories) -> tuple[int | None, ...]:
    return versions(*_tensors(events))


def _arguments(events: Histories, rows: int, dim: int) -> tuple[Any, ...]:
    """The arguments of the macro EMBCOMP_EVENTS of the C++ file, for so many rows."""
    total = rows if events.places is None else events.places.numel()
    words = words_for(events.groups, events.hash_width)
    return (
        size(dim), int64("places", events.places, total), int64("signatures", events.signatures, rows, words),
        pointer("mask", events.mask, torch.bool, total), int64("offsets", events.offsets, events.batch + 1),
        size(events.batch), size(events.groups), size(events.hash_width),
    )  # fmt: skip


def _asked(events: Histories, asked: Tensor) -> tuple[Any, Any]:
    """The signatures of the candidates, and the number of candidates of each history."""
    words = words_for(events.groups, events.hash_width)
    return int64("asked", asked, events.batch, asked.shape[1], words), size(asked.shape[1])


def _plain(*tensors: Any) -> Any:
    """Make tensors contiguous, as C++ reads them."""
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def _library() -> ctypes.CDLL:
    library = native.library()
    assert library is not None
    return library
