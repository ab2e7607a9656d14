"""Rounding to a symmetric grid without a zero, with the gradients of a learned step size.

Level k of `bits` bits is step * (k + 1/2) for -2^(bits-1) <= k < 2^(bits-1): with one bit +-step/2. Gradients are those
of Learned Step Size Quantization (Esser et al. 2020, arXiv 1902.08153, equations 3 to 5): straight through inside the
grid, zero for values beyond it; for the step the rounding error, or the outermost level.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from embcomp.ops.hashing import is_recorded


def levels(values: Tensor, step: Tensor, bits: int) -> Tensor:
    """The number k of the nearest level of each value, as floats: -2^(bits-1) <= k < 2^(bits-1); NaN stays NaN."""
    half = 2 ** (bits - 1)
    return (values / step).floor().clamp(-half, half - 1)


def stochastic_levels(values: Tensor, step: Tensor, bits: int) -> Tensor:
    """Like `levels`, but one of the two levels next to each value, drawn so that the mean is the value."""
    half = 2 ** (bits - 1)
    return (values / step - 0.5 + torch.rand_like(values)).floor().clamp(-half, half - 1)


def _derivatives(values: Tensor, step: Tensor, output: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Whether each value lies inside the grid, and the derivative of its level for the step."""
    half = 2 ** (bits - 1)
    scaled = values / step
    inside = (scaled >= -half) & (scaled < half)
    return inside, output / step - scaled * inside


class _Snap(torch.autograd.Function):
    """`snap_reference` in fewer passes over memory, for plain tensors."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, bits: int, scale: float, stochastic: bool) -> Tensor:
        output = _rounded(values, step, bits, stochastic)
        ctx.bits, ctx.scale = bits, scale
        ctx.save_for_backward(values, step, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, step, output = (tensor.detach() for tensor in ctx.saved_tensors)  # constants, as in the plain form
        inside, slope = _derivatives(values, step, output, ctx.bits)
        for_step = (grads[0] * slope).sum_to_size(step.shape) * ctx.scale if ctx.needs_input_grad[1] else None
        return grads[0] * inside, for_step, None, None, None


def _rounded(values: Tensor, step: Tensor, bits: int, stochastic: bool) -> Tensor:
    return (stochastic_levels if stochastic else levels)(values, step, bits).add_(0.5).mul_(step)


def snap_reference(values: Tensor, step: Tensor, bits: int, scale: float = 1.0, stochastic: bool = False) -> Tensor:
    """`snap` in torch operations that every transform and compiler knows: the levels, and a zero with the gradients."""
    fixed, at = values.detach(), step.detach()
    output = _rounded(fixed, at, bits, stochastic)
    inside, slope = _derivatives(fixed, at, output, bits)
    straight = values * inside + step * (slope * scale)
    return output + (straight - straight.detach())


def snap(values: Tensor, step: Tensor, bits: int, scale: float = 1.0, stochastic: bool = False) -> Tensor:
    """The values of the nearest levels, straight through for the gradient.

    Args:
        values: floats [..., dim].
        step: positive floats that broadcast to `values`, such as [] or [..., 1].
        bits: 1 to 8.
        scale: the factor of the gradient of `step`.
        stochastic: round up or down at random, so that the mean is the value.

    Example:
        >>> import torch
        >>> snap(torch.tensor([-9.0, -0.2, 0.3, 1.1]), torch.tensor(1.0), bits=2)
        tensor([-1.5000, -0.5000,  0.5000,  1.5000])
    """
    if is_recorded(values) or forward_ad._current_level >= 0:
        return snap_reference(values, step, bits, scale, stochastic)
    return _Snap.apply(values, step, bits, scale, stochastic)  # pyright: ignore[reportReturnType]


def best_step(values: Tensor, bits: int) -> Tensor:
    """The step that loses least in the mean square, for each row: floats [rows, n] -> [rows, 1].

    Candidates between a twentieth of the step that reaches the largest value and that step are tried, then the
    neighbourhood of the best one. Where all values are 0, and where none is finite, the step is 1.
    """
    values = values.detach().float()
    largest = values.abs().nan_to_num(0.0, 0.0, 0.0).amax(1, keepdim=True)
    widest = torch.where(largest > 0, largest / 2 ** (bits - 1), 1.0)
    if bits == 1:  # the mean absolute value is exact
        mean = 2.0 * values.abs().mean(1, keepdim=True)
        return torch.where((mean > 0) & mean.isfinite(), mean, 1.0)
    best = widest.clone()
    error = torch.full_like(best, float("inf"))
    factors = torch.linspace(0.05, 1.0, 39, device=values.device)
    for spread in (1.0, 0.0125):
        centre = best.clone()
        for factor in factors:
            step = widest * factor if spread == 1.0 else centre + widest * spread * (2 * factor - 1.05)
            step = step.clamp(min=torch.finfo(torch.float32).tiny)
            lost = (levels(values, step, bits).add_(0.5).mul_(step) - values).square_().sum(1, keepdim=True)
            better = lost < error
            best, error = torch.where(better, step, best), torch.where(better, lost, error)
    return torch.where(largest > 0, best, 1.0)
