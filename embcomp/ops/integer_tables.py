"""Tables whose rows are integers, without a float copy: look-ups, and updates with random rounding.

An integer c of `bits` bits, 8 or 4, stands for step * (c + 1/2 - 2^(bits-1)), as in `embcomp.ops.grid`. A row takes
whole bytes, so that it can be written alone; two integers of 4 bits share a byte, the first in its lower half. A last
byte e encodes the step of the row, 2^((e - 192) / 8). The step is kept while the row fits, since each change rounds all
values again. An update reads a row, moves it as `embcomp.ops.tables` does, and writes it with each value rounded up or
down at random so that its mean is the value (Gupta et al. 2015, arXiv 1502.02551, section 4). It runs on CPU only,
compiled or in torch.
"""

import ctypes

import torch
from torch import Tensor

from embcomp.ops import native
from embcomp.ops.checks import float32, int64, pointer, size
from embcomp.ops.tables import (
    OPTIMIZERS,
    Bags,
    FusedOptimizerSettings,
    pool_bags_reference,
    update_rows_reference,
)

BITS = (8, 4)
STEPS = torch.exp2((torch.arange(256, dtype=torch.float64, device="cpu") - 192) / 8).float()
"""The step for each value of a row's last byte, float32 [256]."""
_SLACK = 16  # steps that a row may be too large
_WORD = 0xFFFFFFFF


def row_nbytes(dim: int, bits: int) -> int:
    """The bytes of a row: its integers, and one byte for its step."""
    return -(-dim * bits // 8) + 1


def codes_of(packed: Tensor, dim: int, bits: int) -> Tensor:
    """Return the integers of rows, uint8 [n, bytes] -> uint8 [n, dim]."""
    codes = packed[:, :-1]
    return codes if bits == 8 else torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1)[:, :dim]


def steps_of(packed: Tensor) -> Tensor:
    """Return the step of each row, uint8 [n, bytes] -> float32 [n, 1]."""
    return STEPS.to(packed.device)[packed[:, -1:].long()]


def read_rows(packed: Tensor, dim: int, bits: int) -> Tensor:
    """Return the values of rows, uint8 [n, bytes] -> float32 [n, dim]."""
    return (codes_of(packed, dim, bits).float() - (2 ** (bits - 1) - 0.5)) * steps_of(packed)


def _random_bits(seed: int, place: Tensor) -> Tensor:
    """Return 32 random bits for each place, as int64, by the finaliser of MurmurHash3."""
    x = ((place & _WORD) * 0x9E3779B1 & _WORD) ^ seed
    x = (x ^ x >> 16) * 0x85EBCA6B & _WORD
    x = (x ^ x >> 13) * 0xC2B2AE35 & _WORD
    return x ^ x >> 16


def _fitting(largest: Tensor, bits: int, now: Tensor | None) -> Tensor:
    """Choose the index of the step for a row with this largest value.

    The current step is kept if it is neither too small nor much too large. Otherwise it is the second smallest step
    that reaches the value, so that it lasts.
    """
    least = torch.searchsorted(2 ** (bits - 1) * STEPS.to(largest.device), largest.contiguous(), right=True)
    new = (least + 1).clamp_(max=255)
    return new if now is None else torch.where((least > now) | (least + _SLACK < now), new, now)


def write_rows(
    packed: Tensor, values: Tensor, bits: int, seed: int | None = None, rows: Tensor | None = None
) -> Tensor:
    """Return rows that hold these values.

    Args:
        packed: the previous rows, uint8 [n, bytes].
        values: the values, finite float32 [n, dim].
        bits: the bits of a value, 8 or 4.
        seed: the seed of random rounding, 32 bits; None rounds to the nearest level and chooses new steps.
        rows: the indices of the rows in the table, int64 [n], for random rounding.

    Returns:
        The rows, uint8 [n, bytes].
    """
    half, dim = 2 ** (bits - 1), values.shape[1]
    largest = values.abs().amax(1)
    last = _fitting(largest, bits, None if seed is None else packed[:, -1].long())
    scaled = values / STEPS.to(values.device)[last].unsqueeze(-1)
    if seed is None or rows is None:
        whole = scaled.floor()
    else:
        place = rows.unsqueeze(-1) * dim + torch.arange(dim, device=rows.device)
        whole = (scaled - 0.5 + (_random_bits(seed, place) >> 8).float() * 2.0**-24).floor()
    codes = (whole.clamp_(-half, half - 1) + half).to(torch.uint8)
    if bits == 4:
        codes = torch.nn.functional.pad(codes, (0, dim % 2))
        codes = codes[:, ::2] | codes[:, 1::2] << 4
    return torch.cat([codes, last.to(torch.uint8).unsqueeze(-1)], dim=1)


def draw_seed() -> int:
    """Draw a seed for one update from torch's generator, so that runs with equal seeds stay equal."""
    return int(torch.randint(_WORD + 1, (), device="cpu"))


def empty_state(settings: FusedOptimizerSettings, rows: int) -> Tensor:
    """Return the initial sums of squared gradients, bfloat16 [rows]; empty for SGD.

    Raises:
        ValueError: the optimizer keeps a number for each value.
    """
    if settings.name == "adagrad":
        raise ValueError(
            "rows without a float copy (copy='none') are trained by RowWiseAdagrad or SGD: Adagrad keeps a float for "
            "each value, more than the row"
        )
    return torch.zeros(rows if settings.name == "rowwise_adagrad" else 0, dtype=torch.bfloat16, device="cpu")


def pool_integers_reference(packed: Tensor, dim: int, bits: int, bags: Bags, out: Tensor) -> None:
    """Compute `pool_integers` in plain torch."""
    pool_bags_reference(read_rows(packed, dim, bits), bags, out)


def pool_integers(packed: Tensor, dim: int, bits: int, bags: Bags, out: Tensor) -> None:
    """Write the sum of each bag's rows into `out` [batch, columns], float32, row-major."""
    rows = packed.shape[0]
    bags.check((rows, dim), out.shape[1])
    lib = native.library()
    if lib is None:
        return pool_integers_reference(packed, dim, bits, bags, out)
    lib.bag_forward(
        *_arguments(packed, dim, bits)[:2], size(dim), *_steps(bits), *bags.arguments(),
        float32("out", out, bags.batch, out.shape[1]), size(out.shape[1]),
        int64("columns", bags.columns, bags.columns.numel()),
    )  # fmt: skip
    return None


def _arguments(packed: Tensor, dim: int, bits: int) -> tuple[ctypes.c_void_p, ctypes.c_size_t]:
    width = row_nbytes(dim, bits)
    return pointer("packed", packed, torch.uint8, packed.shape[0], width), size(width)


def _steps(bits: int) -> tuple[ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]:
    return float32("steps", STEPS, 256), ctypes.c_int64(0), ctypes.c_int(bits)


def update_integers_reference(
    packed: Tensor,
    dim: int,
    bits: int,
    state: Tensor,
    bags: Bags,
    grad: Tensor,
    settings: FusedOptimizerSettings,
    seed: int,
) -> None:
    """Compute `update_integers` in plain torch."""
    mine = bags.own()
    rows, where = torch.unique(mine.rows, return_inverse=True)
    each = grad[mine.columns_of_rows(dim)]
    each = each if mine.weights is None else each * mine.weights.unsqueeze(-1)
    summed = torch.zeros(rows.numel(), dim, device="cpu").index_add_(0, where, each)
    values, sums = read_rows(packed[rows], dim, bits), (state[rows] if state.numel() else state).float()
    order = torch.arange(len(rows) + 1, device="cpu")
    alone = Bags(order[:-1], order, None, torch.zeros(1, dtype=torch.int64, device="cpu"))
    finite = summed.isfinite().all(1)
    update_rows_reference(values, sums, alone, summed, settings)
    finite &= values.isfinite().all(1)
    rows, values, sums = rows[finite], values[finite], sums[finite] if state.numel() else sums
    if state.numel():
        raised = sums.view(torch.int32) + (_random_bits(~seed & _WORD, rows) >> 16).int()
        state[rows] = (raised & ~0xFFFF).view(torch.float32).bfloat16()
    packed[rows] = write_rows(packed[rows], values, bits, seed, rows)


def update_integers(
    packed: Tensor,
    dim: int,
    bits: int,
    state: Tensor,
    bags: Bags,
    grad: Tensor,
    settings: FusedOptimizerSettings,
    seed: int,
) -> None:
    """Make one optimizer step on the rows that a batch has read; the gradients of equal rows are summed first.

    A row is left unchanged if its summed gradient, or its new values, are not finite.

    Args:
        packed: the rows, uint8 [rows, bytes], updated in place.
        dim: the number of values of a row.
        bits: the bits of a value, 8 or 4.
        state: the optimizer state from `empty_state`, updated in place.
        bags: the reads of the batch.
        grad: the gradient of the bags, float32 [batch, columns], row-major.
        settings: the optimizer and its constants.
        seed: the seed of the random rounding, 32 bits.
    """
    rows, width = packed.shape[0], grad.shape[1]
    bags.check((rows, dim), width)
    lib = native.library()
    if lib is None:
        return update_integers_reference(packed, dim, bits, state, bags, grad, settings, seed)
    table, row_bytes = _arguments(packed, dim, bits)
    lib.bag_update(
        table, row_bytes, size(rows), size(dim), *_steps(bits), ctypes.c_void_p(None), ctypes.c_uint32(seed),
        *bags.arguments(), float32("grad", grad, bags.batch, width), size(width),
        int64("columns", bags.columns, bags.columns.numel()), ctypes.c_int(OPTIMIZERS[settings.name]),
        pointer("state", state, torch.bfloat16, *empty_state(settings, rows).shape),
        ctypes.c_float(settings.lr), ctypes.c_float(settings.eps), ctypes.c_float(settings.weight_decay),
    )  # fmt: skip
    return None
