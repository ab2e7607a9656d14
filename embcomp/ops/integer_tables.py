"""Tables whose rows are integers, without a float copy: look-ups, and updates with random rounding.

An integer c of `bits` bits, 8 or 4, stands for step * (c + 1/2 - 2^(bits-1)), as in `embcomp.ops.grid`. A row takes
whole bytes, so that it can be written alone; two integers of 4 bits share a byte, the first in its lower half. A last
byte e encodes the step of the row, 2^((e - 192) / 8). The step is kept while the row fits, since each change rounds all
values again. An update reads a row, moves it as `embcomp.ops.tables` does, and writes it with each value rounded up or
down at random so that its mean is the value (Gupta et al. 2015, arXiv 1502.02551, section 4). It runs on CPU only,
compiled or in torch.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from embcomp.ops import native
from embcomp.ops.checks import pointer
from embcomp.ops.grid import RowGrid
from embcomp.ops.optimizers import FusedOptimizerSettings, rule_of
from embcomp.ops.requests import Asked, Bags, checked
from embcomp.ops.tables import pool_bags_reference, pool_requests
from embcomp.ops.updates import (
    clip_scale,
    gradient_square,
    optimizer_of,
    step_rows,
    summed_gradient,
    update_requests,
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
        value_index = rows.unsqueeze(-1) * dim + torch.arange(dim, device=rows.device)
        whole = (scaled - 0.5 + (_random_bits(seed, value_index) >> 8).float() * 2.0**-24).floor()
    codes = (whole.clamp_(-half, half - 1) + half).to(torch.uint8)
    if bits == 4:
        codes = torch.nn.functional.pad(codes, (0, dim % 2))
        codes = codes[:, ::2] | codes[:, 1::2] << 4
    return torch.cat([codes, last.to(torch.uint8).unsqueeze(-1)], dim=1)


def draw_seed() -> int:
    """Draw a seed for one update from torch's generator, so that runs with equal seeds stay equal."""
    return int(torch.randint(_WORD + 1, (), device="cpu"))


def empty_states(settings: FusedOptimizerSettings, rows: int) -> dict[str, Tensor]:
    """Return the initial state of the optimizer, bfloat16 [rows] by name.

    Raises:
        ValueError: the optimizer keeps a number for each value, or moves rows that were not read.
    """
    states = rule_of(settings).states(settings)
    if large := [name for name, per in states.items() if per == "value"]:
        raise ValueError(
            "rows without a float copy (copy='none') are trained by RowWiseAdagrad or SGD without momentum: "
            f"{settings.name} keeps a float for each value ({', '.join(large)}), more than the row"
        )
    if not settings.lazy:
        raise ValueError(
            "rows without a float copy (copy='none') are only updated in steps that read them: leave "
            "lazy=True, or take copy='float'"
        )
    return {name: torch.zeros(rows, dtype=torch.bfloat16, device="cpu") for name in states}


def pool_integers_reference(packed: Tensor, dim: int, bits: int, bags: Bags, out: Tensor) -> None:
    """Compute `pool_integers` in plain torch."""
    pool_bags_reference(read_rows(packed, dim, bits), bags, out)


def pool_integers(packed: Tensor, dim: int, bits: int, bags: Bags, out: Tensor) -> None:
    """Write the sum of each bag's rows into `out` [batch, columns], float32, row-major."""
    lib = native.library()
    if lib is None:
        bags.check((packed.shape[0], dim), out.shape[1])
        return pool_integers_reference(packed, dim, bits, bags, out)
    return pool_requests(lib, _requests(packed, dim, bits, bags, out.shape[1]), out)


def _requests(packed: Tensor, dim: int, bits: int, bags: Bags, columns: int) -> Any:
    nbytes, rows = row_nbytes(dim, bits), packed.shape[0]
    stored = pointer("packed", packed, torch.uint8, rows, nbytes)
    return checked([Asked(bags, stored, rows, dim, RowGrid(STEPS, 0, bits), nbytes)], columns)


def update_integers_reference(
    packed: Tensor,
    dim: int,
    bits: int,
    states: Mapping[str, Tensor],
    bags: Bags,
    grad: Tensor,
    settings: FusedOptimizerSettings,
    seed: int,
) -> None:
    """Compute `update_integers` in plain torch."""
    rows, summed = summed_gradient(bags, grad, dim)
    scale = clip_scale(float(summed.double().square().sum()), settings)
    values, held = read_rows(packed[rows], dim, bits), {name: state[rows].float() for name, state in states.items()}
    finite = summed.isfinite().all(1)
    step_rows(values, held, summed, settings, scale)
    finite &= values.isfinite().all(1)
    rows, values = rows[finite], values[finite]
    for name, state in states.items():
        raised = held[name][finite].view(torch.int32) + (_random_bits(~seed & _WORD, rows) >> 16).int()
        state[rows] = (raised & ~0xFFFF).view(torch.float32).bfloat16()
    packed[rows] = write_rows(packed[rows], values, bits, seed, rows)


def update_integers(
    packed: Tensor,
    dim: int,
    bits: int,
    states: Mapping[str, Tensor],
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
        states: the optimizer state from `empty_states`, updated in place.
        bags: the reads of the batch.
        grad: the gradient of the bags, float32 [batch, columns], row-major.
        settings: the optimizer and its constants.
        seed: the seed of the random rounding, 32 bits.
    """
    rows, lib = packed.shape[0], native.library()
    if lib is None:
        bags.check((rows, dim), grad.shape[1])
        return update_integers_reference(packed, dim, bits, states, bags, grad, settings, seed)
    requests, scale = _requests(packed, dim, bits, bags, grad.shape[1]), 1.0
    if settings.clip_grad_norm < math.inf:
        scale = clip_scale(gradient_square((rows, dim), bags, grad), settings)
    optimizer = optimizer_of(settings, states, torch.bfloat16, rows, dim, scale, seed=seed)
    return update_requests(lib, requests, [optimizer], grad)
