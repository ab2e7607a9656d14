"""Rows summed up by bucket, and read again: on CPU by C++, with torch beside it for everything else.

A history of events has a table of buckets [groups, width]; in each group every event lies in one bucket, its code. An
event's codes are packed into its signature (`embcomp.sdim.signatures`). Summing events into buckets and reading buckets
back for them are each the other's gradient.
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


class Events(NamedTuple):
    """Events of B histories, end to end, T in all; each is a row of a matrix [N, D] with a signature for each row.

    Attributes:
        signatures: int64 [N, words], of the rows.
        offsets: int64 [B + 1], where each history begins and ends.
        groups: of a signature.
        hash_width: bits of a group, which has 2^hash_width buckets.
        mask: bool [T], True for events that count; None for all.
        places: int64 [T], the row of each event; None where event t is row t, and so N = T.
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
    """How many int64 hold a signature: one for up to 63 bits."""
    return -(-groups // (63 // hash_width))


def sign_codes(x: Tensor, hash_width: int) -> Tensor:
    """Signs to numbers, `hash_width` to a number, the first the lowest bit: float [..., m] -> int64 [..., m / width].

    Example:
        >>> import torch
        >>> sign_codes(torch.tensor([[1.0, -1.0, 2.0, -0.5, 3.0, 0.0]]), 3)
        tensor([[5, 2]])
    """
    bits = (x > 0).long().unflatten(-1, (x.shape[-1] // hash_width, hash_width))
    return (bits << torch.arange(hash_width, device=x.device)).sum(-1)


def fast(values: Tensor) -> bool:
    """Whether the functions below serve these values: float32 on CPU, outside of compiled graphs, with a library."""
    return values.dtype == torch.float32 and readable(values) and native.library() is not None


def sign_signatures(x: Tensor, matrix: Tensor | None, hash_width: int) -> Tensor:
    """The signs of x · matrix, or of x alone, packed; where `fast`: float32 [..., D] and [D, m] -> int64 [..., words].

    A row's signature does not depend on the rows beside it, which a matrix product of BLAS does not promise: it adds up
    in another order for another shape, and a sum near zero may change its sign.
    """
    number = x.shape[-1] if matrix is None else matrix.shape[1]
    words = words_for(number // hash_width, hash_width)
    signatures = torch.empty(*x.shape[:-1], words, dtype=torch.int64, device="cpu")
    x, matrix = _plain(x.detach(), matrix)
    _library().sign_words(
        float32("x", x, *x.shape), size(x.shape[:-1].numel()), size(x.shape[-1]),
        float32("matrix", matrix, x.shape[-1], number), size(number), size(63 // hash_width * hash_width),
        int64("signatures", signatures, *signatures.shape),
    )  # fmt: skip
    return signatures


def scatter(values: Tensor, events: Events) -> tuple[Tensor, Tensor]:
    """Bucket sums of histories and how many events each holds, with gradients to values [N, D]; where `fast`.

    Returns:
        sums float32 [B, groups, 2^hash_width, D], counts float32 [B, groups, 2^hash_width].

    Raises:
        IndexError: a place that is no row.
    """
    return _Scatter.apply(values, _checked(len(values), events))  # pyright: ignore[reportReturnType]


def gather(sums: Tensor, events: Events) -> Tensor:
    """The sum of each event's buckets in its history, one of each group, with gradients; where `fast`.

    Args:
        sums: float32 [B, groups, 2^hash_width, D].
        events: who reads; without places.

    Returns:
        float32 [T, D].
    """
    return _Gather.apply(sums, _checked(len(events.signatures), events))  # pyright: ignore[reportReturnType]


def unit_rows(rows: Tensor, scale: float = 1.0) -> Tensor:
    """Rows [..., D] divided by their length, times `scale`; zeros stay zeros, with a gradient of zero; where `fast`."""
    return _Unit.apply(rows, scale)  # pyright: ignore[reportReturnType]


def query(
    asked: Tensor,
    signatures: Tensor | None,
    matrix: Tensor | None,
    sums: Tensor,
    counts: Tensor | None,
    hash_width: int,
    unit: bool,
    weights: Tensor | None = None,
) -> Tensor:
    """`sign_signatures`, what changes buckets, and `gather` in one call, without gradients; where `fast`.

    Args:
        asked: float32 [B, C, D], the candidates.
        signatures: int64 [B, C, words], theirs where they are known; else the signs of asked · `matrix` are.
        matrix: float32 [D, m].
        sums: float32 [B, groups, 2^hash_width, D].
        counts: float32 [B, groups, 2^hash_width] divides what each candidate finds by the events in it; or None.
        hash_width: bits of a group.
        unit: divide each bucket by its length (`unit_rows`), and the sum by the number of groups.
        weights: float32 [B, hash_width + 1], without `unit`: a candidate finds all buckets of a group, each times the
            weight of how many of its bits differ from the candidate's.

    Returns:
        float32 [B, C, D].
    """
    asked, signatures, matrix, sums, counts, weights = _plain(asked, signatures, matrix, sums, counts, weights)
    out = torch.empty(asked.shape, dtype=torch.float32, device="cpu")
    batch, candidates, dim = asked.shape
    groups, width = sums.shape[1], 2**hash_width
    if signatures is None and matrix is None:
        raise ValueError("query needs signatures, or the matrix that gives them")
    _library().bucket_query(
        float32("asked", asked, *asked.shape),
        int64("signatures", signatures, batch, candidates, words_for(groups, hash_width)),
        size(batch), size(candidates), size(dim), float32("matrix", matrix, dim, groups * hash_width),
        size(groups), size(hash_width), float32("sums", sums, batch, groups, width, dim),
        float32("counts", counts, batch, groups, width), ctypes.c_float(unit / groups),
        float32("weights", weights, batch, hash_width + 1), float32("out", out, *out.shape),
    )  # fmt: skip
    return out


def collide(values: Tensor, events: Events, asked: Tensor) -> tuple[Tensor, Tensor]:
    """The events that agree with candidates, summed up by group, with gradients to values [N, D]; where `fast`.

    What candidates would read from the buckets, without the buckets that none of them reads.

    Args:
        values: float32 [N, D].
        events: of the histories.
        asked: int64 [B, C, words], the signatures of each history's candidates.

    Returns:
        sums float32 [B, C, groups, D], counts float32 [B, C, groups].

    Raises:
        IndexError: a place that is no row.
    """
    return _Collide.apply(values, _checked(len(values), events), asked)  # pyright: ignore[reportReturnType]


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, values: Tensor, events: Events
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
    def forward(ctx: Any, sums: Tensor, events: Events) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
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
        found = grads[0].clone(memory_format=torch.contiguous_format)
        _library().unit_rows_backward(
            float32("rows", rows, *rows.shape), float32("scales", scales, *scales.shape), *ctx.sizes,
            float32("gradient", found, *rows.shape),
        )  # fmt: skip
        return found, None


class _Collide(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, values: Tensor, events: Events, asked: Tensor
    ) -> tuple[Tensor, Tensor]:
        asked = asked.contiguous()
        ctx.events, ctx.asked, ctx.rows = events, asked, len(values)
        ctx.versions = versions(asked, *_tensors(events))
        shape = (*asked.shape[:2], events.groups)
        sums, counts = torch.zeros(*shape, values.shape[1], **_FLOAT), torch.zeros(shape, **_FLOAT)
        (values,) = _plain(values)
        _library().bucket_collide(
            float32("values", values, *values.shape), *_arguments(events, len(values), values.shape[1]),
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
        _library().bucket_collide_backward(
            float32("gradient", grad, *ctx.asked.shape[:2], ctx.events.groups, grad.shape[3]),
            *_arguments(ctx.events, ctx.rows, grad.shape[3]), *_asked(ctx.events, ctx.asked),
            float32("out", out, *out.shape),
        )  # fmt: skip
        return out, None, None


def _scatter(values: Tensor, events: Events) -> tuple[Tensor, Tensor]:
    shape = (events.batch, events.groups, 2**events.hash_width)
    sums, counts = torch.zeros(*shape, values.shape[1], **_FLOAT), torch.zeros(shape, **_FLOAT)
    (values,) = _plain(values)
    _library().bucket_scatter(
        float32("values", values, *values.shape), *_arguments(events, len(values), values.shape[1]),
        float32("sums", sums, *sums.shape), float32("counts", counts, *counts.shape),
    )  # fmt: skip
    return sums, counts


def _gather(sums: Tensor, events: Events, rows: int) -> Tensor:
    dim = sums.shape[3]
    whole = events.places is None and (int(events.offsets[0]), int(events.offsets[-1])) == (0, rows)
    out = (torch.empty if whole else torch.zeros)(rows, dim, **_FLOAT)  # rows without an event are not written
    (sums,) = _plain(sums)
    _library().bucket_gather(
        float32("sums", sums, events.batch, events.groups, 2**events.hash_width, dim),
        *_arguments(events, rows, dim), float32("out", out, *out.shape),
    )  # fmt: skip
    return out


def _checked(rows: int, events: Events) -> Events:
    """As C++ reads them. Raises ValueError or IndexError for events that do not fit so many rows."""
    signatures, offsets, mask, places = _plain(events.signatures, events.offsets, events.mask, events.places)
    events = events._replace(signatures=signatures, offsets=offsets, mask=mask, places=places)
    check_offsets(offsets, rows if places is None else places.numel())
    if places is not None:
        check_inside(places[int(offsets[0]) : int(offsets[-1])], rows)
    return events


def _tensors(events: Events) -> tuple[Tensor | None, ...]:
    return events.signatures, events.offsets, events.mask, events.places


def _versions(events: Events) -> tuple[int | None, ...]:
    return versions(*_tensors(events))


def _arguments(events: Events, rows: int, dim: int) -> tuple[Any, ...]:
    """EMBCOMP_EVENTS of the C++ file, for so many rows."""
    total = rows if events.places is None else events.places.numel()
    words = words_for(events.groups, events.hash_width)
    return (
        size(dim), int64("places", events.places, total), int64("signatures", events.signatures, rows, words),
        pointer("mask", events.mask, torch.bool, total), int64("offsets", events.offsets, events.batch + 1),
        size(events.batch), size(events.groups), size(events.hash_width),
    )  # fmt: skip


def _asked(events: Events, asked: Tensor) -> tuple[Any, Any]:
    """The signatures of candidates, and how many each history has."""
    words = words_for(events.groups, events.hash_width)
    return int64("asked", asked, events.batch, asked.shape[1], words), size(asked.shape[1])


def _plain(*tensors: Any) -> Any:
    """As C++ reads them."""
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def _library() -> ctypes.CDLL:
    library = native.library()
    assert library is not None
    return library
