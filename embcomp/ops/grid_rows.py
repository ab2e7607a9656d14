"""Look-ups in packed rows on a grid (`embcomp.ops.grid`): in plain torch, and compiled."""

import ctypes
import functools

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
    1/2 - 2^(bits-1), which are exact. Steps of rows go into the weights, a common step into the sum.
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
    lines = _with_scale_and_bias(gather_lines(packed, rows), bits)
    if shared:
        own = steps_of_rows(step, shared, rows).view(-1)
        weights = own if weights is None else own * weights
    order = torch.arange(count, device="cpu")
    bounds = torch.arange(count + 1, device="cpu") if offsets is None else offsets
    sums = kernel(lines, order, bounds, False, 0, False, weights, None, True)
    if mode == "mean" and offsets is not None:
        sums /= offsets.diff().clamp(min=1).unsqueeze(1)
    return sums if shared else sums.mul_(step)


def _with_scale_and_bias(lines: Tensor, bits: int) -> Tensor:
    """The lines, each followed by the scale and the bias of its values as float16."""
    behind = _scale_and_bias(bits)
    if lines.shape[1] % 4:
        return torch.cat([lines, behind.expand(len(lines), 4)], 1)
    padded = F.pad(lines.view(torch.int32), (0, 1), value=_as_word(bits))  # torch copies words faster than bytes
    return padded.view(torch.uint8)


@functools.cache
def _scale_and_bias(bits: int) -> Tensor:
    return torch.tensor([1.0, 0.5 - 2 ** (bits - 1)], dtype=torch.float16, device="cpu").view(torch.uint8)


@functools.cache
def _as_word(bits: int) -> int:
    return int(_scale_and_bias(bits).view(torch.int32))


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
