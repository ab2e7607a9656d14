"""Rounding to a symmetric grid without a zero, with the gradients of a learned step size.

Level k of `bits` bits is step * (k + 1/2) for -2^(bits-1) <= k < 2^(bits-1): with one bit +-step/2. Gradients are those
of Learned Step Size Quantization (Esser et al. 2020, arXiv 1902.08153, equations 3 to 5): straight through inside the
grid, zero for values beyond it; for the step the rounding error, or the outermost level.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from embcomp.ops import native
from embcomp.ops.checks import float32, is_recorded, pointer, readable, size


@dataclass(frozen=True)
class RowGrid:
    """The grid to which the rows of one table are rounded, for look-ups that round as they read.

    Attributes:
        step: the steps, positive float32 [steps].
        shared: the number of consecutive rows that share a step; 0 if all rows share one.
        bits: the bits of a value, 1 to 8.
        scale: the factor of the gradient of `step`.
    """

    step: Tensor
    shared: int
    bits: int
    scale: float = 1.0

    def place(self, rows: Tensor) -> Tensor:
        """Return the index of each row's step."""
        return rows // self.shared if self.shared else torch.zeros_like(rows)

    def snapped(self, table: Tensor) -> Tensor:
        """Return all rows as they will be served, without gradients, [rows, dim]."""
        step = self.step.detach()[self.place(torch.arange(len(table), device=table.device))].unsqueeze(-1)
        return _rounded(table.detach(), step, self.bits, stochastic=False)

    def pass_back(self, values: Tensor, rows: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Turn gradients [n, dim] of rounded rows into those of the rows, with these values, and of `step`, [steps]."""
        step_index = self.place(rows)
        step = self.step.detach()[step_index].unsqueeze(-1)
        inside, slope = _derivatives(values, step, _rounded(values, step, self.bits, stochastic=False), self.bits)
        of_rows = (grad * slope).sum(1, dtype=torch.float64)
        sums = of_rows.new_zeros(self.step.shape).index_add_(0, step_index, of_rows)
        return grad * inside, (sums * self.scale).to(self.step.dtype)


def levels(values: Tensor, step: Tensor, bits: int | Tensor) -> Tensor:
    """Return the index k of each value's nearest level, as floats: -2^(bits-1) <= k < 2^(bits-1); NaN stays NaN."""
    half = 2 ** (bits - 1)
    return (values / step).floor().clamp(-half, half - 1)


def stochastic_levels(values: Tensor, step: Tensor, bits: int | Tensor) -> Tensor:
    """Draw one of the two levels next to each value, so that the mean is the value; otherwise like `levels`."""
    half = 2 ** (bits - 1)
    return (values / step - 0.5 + torch.rand_like(values)).floor().clamp(-half, half - 1)


def _derivatives(values: Tensor, step: Tensor, output: Tensor, bits: int | Tensor) -> tuple[Tensor, Tensor]:
    """The mask of values inside the grid, and the derivative of their levels by the step."""
    half = 2 ** (bits - 1)
    scaled = values / step
    inside = (scaled >= -half) & (scaled < half)
    return inside, output / step - scaled * inside


def _library(values: Tensor, step: Tensor, *others: Tensor) -> ctypes.CDLL | None:
    """The compiled functions, if they support these tensors: float32 with one step, or one step for each row."""
    if any(t.dtype != torch.float32 for t in (values, step, *others)) or not values.is_contiguous():
        return None
    fits = values.dim() and (step.numel() == 1 or (step.shape == (*values.shape[:-1], 1) and step.is_contiguous()))
    return native.library() if fits and readable(values, step, *others) else None


def _arguments(values: Tensor, step: Tensor, bits: int) -> tuple[Any, ...]:
    """The values, steps, number of rows that share one, and bits, in the form for C++."""
    dim = values.shape[-1]
    return (
        float32("values", values, *values.shape), size(values.numel() // max(1, dim)), size(dim),
        float32("step", step, *step.shape), ctypes.c_int64(0 if step.numel() == 1 else 1), ctypes.c_int(bits),
    )  # fmt: skip


class _Snap(torch.autograd.Function):
    """A form of `snap_reference` with fewer passes over memory, for plain tensors; a single pass if compiled."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, bits: int, scale: float, stochastic: bool) -> Tensor:
        ctx.bits, ctx.scale = bits, scale
        lib = None if stochastic else _library(values, step)
        if lib is None:
            output = _rounded(values, step, bits, stochastic)
            ctx.save_for_backward(values, step, output)
            return output
        ctx.save_for_backward(values, step)
        output = torch.empty_like(values)
        lib.grid_snap(*_arguments(values, step, bits), float32("output", output, *output.shape))
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, step, *outputs = (tensor.detach() for tensor in ctx.saved_tensors)  # constants, as in the plain form
        lib = None if outputs or torch.is_grad_enabled() else _library(values, step, grads[0])
        if lib is not None:
            grad = grads[0].clone(memory_format=torch.contiguous_format)
            of_step = torch.zeros(step.shape, dtype=torch.float64, device="cpu")
            sums = pointer("of_step", of_step, torch.float64, *step.shape)
            lib.grid_snap_back(*_arguments(values, step, ctx.bits), float32("grad", grad, *grad.shape), sums)
            return grad, (of_step * ctx.scale).to(step.dtype), None, None, None
        output = outputs[0] if outputs else _rounded(values, step, ctx.bits, stochastic=False)
        inside, slope = _derivatives(values, step, output, ctx.bits)
        for_step = (grads[0] * slope).sum_to_size(step.shape) * ctx.scale if ctx.needs_input_grad[1] else None
        return grads[0] * inside, for_step, None, None, None


def _rounded(values: Tensor, step: Tensor, bits: int | Tensor, stochastic: bool) -> Tensor:
    return (stochastic_levels if stochastic else levels)(values, step, bits).add_(0.5).mul_(step)


def snap_reference(
    values: Tensor, step: Tensor, bits: int | Tensor, scale: float | Tensor = 1.0, stochastic: bool = False
) -> Tensor:
    """Compute `snap` by torch operations that every transform and compiler supports; bits may be a tensor of floats."""
    fixed, at = values.detach(), step.detach()
    output = _rounded(fixed, at, bits, stochastic)
    inside, slope = _derivatives(fixed, at, output, bits)
    straight = values * inside + step * (slope * scale)
    return output + (straight - straight.detach())


def snap(values: Tensor, step: Tensor, bits: int, scale: float = 1.0, stochastic: bool = False) -> Tensor:
    """Round to the nearest levels, with straight-through gradients.

    Args:
        values: the values, floats [..., dim].
        step: the steps, positive floats that broadcast to `values`, such as [] or [..., 1].
        bits: the bits of a value, 1 to 8.
        scale: the factor of the gradient of `step`.
        stochastic: True to round up or down at random, so that the mean is the value.

    Example:
        >>> import torch
        >>> snap(torch.tensor([-9.0, -0.2, 0.3, 1.1]), torch.tensor(1.0), bits=2)
        tensor([-1.5000, -0.5000,  0.5000,  1.5000])
    """
    if is_recorded(values) or forward_ad._current_level >= 0:
        return snap_reference(values, step, bits, scale, stochastic)
    return _Snap.apply(values, step, bits, scale, stochastic)  # pyright: ignore[reportReturnType]


def best_step(values: Tensor, bits: int) -> Tensor:
    """Find the step of least mean squared error for each row: floats [rows, n] -> [rows, 1].

    Candidates from 1/20 of the step that reaches the largest value up to that step are tried, then the neighbourhood of
    the best one. If all values are 0, or none is finite, the step is 1.
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
