"""Look-ups in packed rows on a grid (`embcomp.ops.grid`): in plain torch, and compiled."""

import ctypes
import functools
import threading
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp.ops import native
from embcomp.ops.bags import pool_in_order
from embcomp.ops.checks import check_inside, check_not_empty, check_offsets, float32, int64, pointer, readable, size
from embcomp.ops.packed_rows import gather_lines, line_nbytes, read_rows, rows_of_line


def decode(codes: Tensor, bits: int, step: Tensor) -> Tensor:
    """Return the values step * (code + 1/2 - 2^(bits-1)): uint8 [N, dim], float32 [1] or [N, 1] -> float32 [N, dim].

    Example:
        >>> import torch
        >>> decode(torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8), 2, torch.tensor([0.1]))
        tensor([[-0.1500, -0.0500,  0.0500,  0.1500]])
    """
    return (codes.float() - (2 ** (bits - 1) - 0.5)) * step


def steps_of_rows(step: Tensor, shared: int, rows: Tensor) -> Tensor:
    """Return the step of each row, [1] or [N, 1]: `shared` consecutive rows share one; 0 means that all do."""
    if not shared:
        return step
    return step[rows if shared == 1 else rows // shared].unsqueeze(-1)


_CARRIERS = {16: torch.complex128, 8: torch.int64, 4: torch.int32}  # what torch copies at once, by bytes
_KEPT = 1 << 21  # bytes
_NUMBERS = torch.arange(1 << 16, device="cpu")
_WORDS = {8: torch.float32, 4: torch.int64, 2: torch.complex128}  # as wide as the values of a byte


def _by_bytes(packed: Tensor, bits: int, dim: int, step: Tensor, shared: int, rows: Tensor) -> Tensor:
    """Decode rows whose bytes hold whole values: a table of 256 entries gives the values of a byte as one word.

    In torch this takes a third of the time of shifting, masking and converting each value.
    """
    each = torch.arange(256, dtype=torch.int32, device=packed.device).unsqueeze(1)
    codes = (each >> torch.arange(0, 8, bits, dtype=torch.int32, device=packed.device)) & (2**bits - 1)
    values = decode(codes, bits, torch.ones_like(step[:1]) if shared else step).contiguous()
    words = values.view(_WORDS[bits]).view(256)
    read = gather_lines(packed, rows).int().view(rows.shape[0] * packed.shape[1])
    vectors = words.index_select(0, read).view(torch.float32).view(rows.shape[0], dim)
    return vectors * steps_of_rows(step, shared, rows) if shared else vectors


def grid_bags_reference(
    packed: Tensor,
    bits: int,
    dim: int,
    step: Tensor,
    shared: int,
    rows: Tensor,
    offsets: Tensor | None = None,
    weights: Tensor | None = None,
    mode: str = "sum",
) -> Tensor:
    """Compute `grid_bags` in plain torch: on any device, traceable by torch.compile and torch.export."""
    if bits in _WORDS and dim * bits % 8 == 0:
        vectors = _by_bytes(packed, bits, dim, step, shared, rows)
    else:
        vectors = decode(read_rows(packed, bits, dim, rows), bits, steps_of_rows(step, shared, rows))
    if offsets is None:
        return vectors if weights is None else vectors * weights.unsqueeze(-1)
    return pool_in_order(vectors, offsets, weights, mode)


def grid_bags_by_torch(
    packed: Tensor,
    bits: int,
    dim: int,
    step: Tensor,
    shared: int,
    rows: Tensor,
    offsets: Tensor | None = None,
    weights: Tensor | None = None,
    mode: str = "sum",
) -> Tensor:
    """Compute `grid_bags` of 2 or 4 bits by torch's own kernel for bags of such rows, on CPU; rows end at whole bytes.

    It takes half the time of decoding each row. The kernel reads scale and bias behind each row, as float16: here 1 and
    1/2 - 2^(bits-1), which are exact. Steps are its weights; a common step of single rows is a factor in the end.
    """
    if weights is not None:  # the kernel reads memory as it lies, and checks neither dtype nor length
        weights = weights.contiguous()
        float32("weights", weights, rows.shape[0])
    if offsets is not None:
        check_offsets(offsets, rows.shape[0])
        first, end = int(offsets[0]), int(offsets[-1])
        if first > 0 or end < rows.shape[0]:  # the others are in no bag
            rows, weights = rows[first:end], None if weights is None else weights[first:end]
        offsets = (offsets - first if first else offsets).contiguous()
    count, kernel = rows.shape[0], getattr(torch.ops.quantized, f"embedding_bag_{bits}bit_rowwise_offsets")
    if offsets is None:
        bounds, lines = _numbers(count + 1), _with_scale_and_bias(gather_lines(packed, rows), bits)
    else:
        bounds, lines = offsets, _gather_with_scale_and_bias(packed, rows, bits)
    if shared or offsets is not None:
        own = steps_of_rows(step, shared, rows).view(-1)
        weights = own.expand(count).contiguous() if weights is None else own * weights
    sums = kernel(lines, _numbers(count), bounds, False, 0, False, weights, None, True)[:, :dim]
    if mode == "mean" and offsets is not None:
        sums /= offsets.diff().clamp(min=1).unsqueeze(1)
    return sums if shared or offsets is not None else sums.mul_(step)


def _numbers(count: int) -> Tensor:
    """The numbers from 0 to `count` - 1, int64 on CPU, not to be written to: making them takes a while."""
    return _NUMBERS[:count] if count <= len(_NUMBERS) else torch.arange(count, device="cpu")


def _gather_with_scale_and_bias(packed: Tensor, rows: Tensor, bits: int) -> Tensor:
    """The lines of rows, each followed by unused values and the scale and bias, so that a row is of whole words.

    Torch gathers single words at once into their places, and its kernel reads rows fastest that begin at a word: of
    lines of one or two words bags take a fifth less time so, in spite of the unused values.
    """
    width = packed.shape[1]
    word = next((word for word in _CARRIERS if width in (word, 2 * word) and packed.storage_offset() % word == 0), None)
    if word is None:
        return _with_scale_and_bias(gather_lines(packed, rows), bits)
    words = packed.view(_CARRIERS[word])
    lines = _LINES.of(bits, word, rows.shape[0], words.shape[1] + 1)
    for source, place in zip(words.unbind(1), lines.unbind(1), strict=False):
        torch.index_select(source, 0, rows, out=place)
    return lines.view(torch.uint8)


class _Lines(threading.local):
    """The memory of lines that end in scale and bias, kept by each thread: new memory takes as long as a gather."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, int, int], Tensor] = {}

    def of(self, bits: int, word: int, number: int, words: int) -> Tensor:
        """Return lines [number, words] with the last word in place."""
        kept = self.kept.get((bits, word, words))
        if kept is None or len(kept) < number:
            with torch.inference_mode(False):  # a tensor that is made inside cannot be written to outside
                full = torch.full((number * words,), _last_word(bits, word), dtype=_CARRIERS[word], device="cpu")
            kept = full.view(number, words)
            if kept.nbytes <= _KEPT:
                self.kept[bits, word, words] = kept
        return kept[:number]


_LINES = _Lines()


def _with_scale_and_bias(lines: Tensor, bits: int) -> Tensor:
    """The lines, each followed by the scale and the bias of its values as float16."""
    if lines.shape[1] % 4:
        return torch.cat([lines, _scale_and_bias(bits).expand(len(lines), 4)], 1)
    padded = F.pad(lines.view(torch.int32), (0, 1), value=_last_word(bits, 4))  # torch copies words faster than bytes
    return padded.view(torch.uint8)


@functools.cache
def _scale_and_bias(bits: int) -> Tensor:
    return torch.tensor([1.0, 0.5 - 2 ** (bits - 1)], dtype=torch.float16, device="cpu").view(torch.uint8)


@functools.cache
def _last_word(bits: int, nbytes: int) -> Any:
    """The number of `nbytes` whose memory is zeros, then the scale and the bias of values."""
    return F.pad(_scale_and_bias(bits), (nbytes - 4, 0)).view(_CARRIERS[nbytes]).item()


def grid_bags(
    packed: Tensor,
    bits: int,
    dim: int,
    step: Tensor,
    shared: int,
    rows: Tensor,
    offsets: Tensor | None = None,
    weights: Tensor | None = None,
    mode: str = "sum",
) -> Tensor:
    """Pool bags of decoded rows.

    Args:
        packed: the packed rows, uint8 [lines, bytes], from `embcomp.ops.packed_rows.pack_rows`.
        bits: the bits of a value.
        dim: the number of values of a row.
        step: the step, float32 [1], or a step for every `shared` rows.
        shared: the number of consecutive rows that share a step; 0 if all do.
        rows: the rows to read, int64 [N].
        offsets: the bounds of the bags, int64 [bags + 1]; None returns each row by itself.
        weights: a factor for each row, float32 [N].
        mode: the pooling, "sum" or "mean"; empty bags are zero.

    Returns:
        The bags, float32 [bags, dim], or the rows, [N, dim].

    Raises:
        IndexError: a row is not in the table.

    Example:
        >>> import torch
        >>> from embcomp.ops.packed_rows import pack_rows
        >>> packed = pack_rows(torch.tensor([[3, 0], [2, 1]], dtype=torch.uint8), bits=2)
        >>> grid_bags(packed, 2, 2, torch.tensor([1.0]), 0, torch.tensor([0, 1]), torch.tensor([0, 2]))
        tensor([[ 2., -2.]])
    """
    tensors = [t for t in (packed, step, rows, offsets, weights) if t is not None]
    here = readable(*tensors) and mode in ("sum", "mean")
    lib = native.library() if here else None
    if lib is None:
        if here and bits in (2, 4) and dim * bits % 8 == 0:
            return grid_bags_by_torch(packed, bits, dim, step, shared, rows, offsets, weights, mode)
        return grid_bags_reference(packed, bits, dim, step, shared, rows, offsets, weights, mode)
    rows = rows.contiguous()
    number = count = rows.shape[0]
    held = packed.shape[0] * rows_of_line(dim, bits)
    if shared:
        held = min(held, step.shape[0] * shared)
    if offsets is not None:
        check_not_empty(offsets)
        offsets, count = offsets.contiguous(), offsets.shape[0] - 1
    weights = None if weights is None else weights.contiguous()
    out = torch.empty(count, dim, dtype=torch.float32, device="cpu")
    astray = lib.grid_bags(
        pointer("packed", packed, torch.uint8, packed.shape[0], line_nbytes(dim, bits)), size(packed.nbytes),
        size(dim), size(bits), float32("step", step, step.shape[0] if shared else 1), ctypes.c_int64(shared),
        int64("rows", rows, number), size(number), size(held), int64("offsets", offsets, count + 1), size(count),
        float32("weights", weights, number), ctypes.c_int(mode == "mean"), float32("out", out, count, dim),
    )  # fmt: skip
    if astray:
        check_inside(rows, held)
        check_offsets(rows.new_zeros(1) if offsets is None else offsets, number)
        raise RuntimeError("rows or offsets of a look-up were changed during it: give it a copy")
    return out
