"""Rows as small integers, with a scale and a bias for each row: value = bias + scale * code."""

from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK = 1 << 20  # values at a time, so that a large table needs no second copy of itself


class Quantized(NamedTuple):
    """Quantised rows: `codes` uint8 [rows, dim] below 2^bits; `scale` and `bias` float32 [rows, 1]."""

    codes: Tensor
    scale: Tensor
    bias: Tensor

    def dequantize(self) -> Tensor:
        """Return the values, float32 [rows, dim]."""
        return self.bias + self.scale * self.codes


def quantize(rows: Tensor, bits: int, half: bool) -> Quantized:
    """Find the nearest code of each value on its row's grid from the row's minimum to its maximum.

    Args:
        rows: the rows, floats [rows, dim], finite.
        bits: the bits of a code, 8 or 4.
        half: True if scale and bias will be stored as float16. They are then rounded outwards, so that the grid still
            covers the row.

    Returns:
        The codes, scales and biases; each decoded value is within scale / 2 of its original, up to the rounding of
        float32.

    Raises:
        OverflowError: a scale or a bias exceeds its floating type.

    Example:
        >>> import torch
        >>> quantize(torch.tensor([[0.0, 0.5, 3.0]]), bits=4, half=True)
        Quantized(codes=tensor([[ 0,  2, 15]], dtype=torch.uint8), scale=tensor([[0.2001]]), bias=tensor([[0.]]))
    """
    count, dim = rows.shape
    codes = torch.empty(count, dim, dtype=torch.uint8, device="cpu")
    scale, bias = (torch.empty(count, 1, dtype=torch.float32, device="cpu") for _ in range(2))
    step = max(1, _BLOCK // max(dim, 1))
    for start in range(0, count, step):
        block = slice(start, start + step)
        codes[block], scale[block], bias[block] = _quantize(rows[block].detach().cpu().float(), 2**bits - 1, half)
    if not (bool(scale.isfinite().all()) and bool(bias.isfinite().all())):
        raise OverflowError("a scale or a bias exceeds its floating type")
    return Quantized(codes, scale, bias)


def _quantize(rows: Tensor, most: int, half: bool) -> Quantized:
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    bias = _half(low, up=False) if half else low
    scale = (high - bias) / most
    scale = _half(scale, up=True) if half else scale
    # A row of equal values has scale 0 and codes 0: its value is the bias.
    codes = ((rows - bias) / scale.where(scale > 0, 1.0)).round_().clamp_(0, most)
    return Quantized(codes.to(torch.uint8), scale, bias)


def _half(values: Tensor, up: bool) -> Tensor:
    """The nearest float16 that is not below (or not above) each value, as float32."""
    nearest = values.half()
    wrong = nearest.float() < values if up else nearest.float() > values
    limit = torch.full_like(nearest, float("inf") if up else float("-inf"))
    return nearest.where(~wrong, torch.nextafter(nearest, limit)).float()
