"""Fused optimizers over plain float32 tables on CPU: the compiled form, and a form in torch.

Only the rows that a batch has read are touched (with `lazy=False` all), and no gradient as large as a table is made.
"""

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from embcomp.ops import native
from embcomp.ops.checks import float32, int64, pointer, size
from embcomp.ops.grid import RowGrid
from embcomp.ops.optimizers import Constants, FusedOptimizerSettings, Per, rule_of
from embcomp.ops.tables import Bags, empty_table, grid_arguments

_NORM_EPS = 1e-6  # as torch.nn.utils.clip_grad_norm_ has it


def state_shape(per: Per, rows: int, dim: int) -> tuple[int, ...]:
    """Return the shape of a state of a table."""
    return (rows, dim) if per == "value" else (rows,)


def empty_states(settings: FusedOptimizerSettings, rows: int, dim: int) -> dict[str, Tensor]:
    """Return the initial state of the optimizer for a table, float32 [rows, dim] or [rows] by name.

    Example:
        >>> from embcomp.ops.optimizers import FusedOptimizerSettings
        >>> from embcomp.ops.updates import empty_states
        >>> {name: list(state.shape) for name, state in empty_states(FusedOptimizerSettings("adam", 0.1), 5, 8).items()}
        {'exp_avg': [5, 8], 'exp_avg_sq': [5, 8], 'row_counter': [5]}
    """
    states = rule_of(settings).states(settings)
    return {name: empty_table(*state_shape(per, rows, dim)).zero_() for name, per in states.items()}


def summed_gradient(bags: Bags, grad: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the distinct rows that were read, int64 [n], and the summed gradient of each, float32 [n, dim]."""
    bags = bags.own()
    each = grad[bags.columns_of_rows(dim)]
    if bags.weights is not None:
        each = each * bags.weights.unsqueeze(-1)
    rows, where = torch.unique(bags.rows, return_inverse=True)
    return rows, torch.zeros(rows.numel(), dim, dtype=torch.float32, device="cpu").index_add_(0, where, each)


def step_rows(
    rows: Tensor, states: Mapping[str, Tensor], gradient: Tensor, settings: FusedOptimizerSettings, scale: float
) -> None:
    """Make one step of all these rows, [n, dim], in plain torch, in place; their states are [n, dim] or [n]."""
    rule = rule_of(settings)
    gradient = (gradient * scale).clamp(-settings.clip_grad_value, settings.clip_grad_value)
    rule.step(rows, gradient + rule.decay_inside(settings) * rows, dict(states), settings)


def clip_scale(square: float, settings: FusedOptimizerSettings) -> float:
    """Return the factor of a gradient with this squared norm, as in torch.nn.utils.clip_grad_norm_."""
    if settings.clip_grad_norm == math.inf:
        return 1.0
    return min(1.0, settings.clip_grad_norm / (math.sqrt(square) + _NORM_EPS))


def gradient_square(shape: Sequence[int], bags: Bags, grad: Tensor) -> float:
    """Compute the squared norm of the gradient of a table of this shape, [rows, dim], from that of its bags."""
    return _square(None, shape, bags, grad, None)


def _square(table: Tensor | None, shape: Sequence[int], bags: Bags, grad: Tensor, grid: RowGrid | None) -> float:
    (rows, dim), width = shape, grad.shape[1]
    lib = native.library()
    if lib is None:
        read, summed = summed_gradient(bags, grad, dim)
        if grid is not None and table is not None:
            summed, _ = grid.pass_back(table[read], read, summed)
        return float(summed.double().square().sum())
    square = ctypes.c_double()
    lib.bag_square(
        float32("table", table, rows, dim), size(rows), size(dim), *grid_arguments(grid, rows), *bags.arguments(),
        float32("grad", grad, bags.batch, width), size(width), int64("columns", bags.columns, bags.columns.numel()),
        ctypes.byref(square),
    )  # fmt: skip
    return square.value


def update_rows_reference(
    table: Tensor,
    states: Mapping[str, Tensor],
    bags: Bags,
    grad: Tensor,
    settings: FusedOptimizerSettings,
    grid: RowGrid | None = None,
) -> Tensor | None:
    """Compute `update_rows` in plain torch."""
    rows, summed = summed_gradient(bags, grad, table.shape[1])
    of_steps = None
    if grid is not None:
        summed, of_steps = grid.pass_back(table[rows], rows, summed)
    scale = clip_scale(float(summed.double().square().sum()), settings)
    if not settings.lazy:
        rows, summed = torch.arange(len(table), device="cpu"), torch.zeros_like(table).index_copy_(0, rows, summed)
    values, held = table[rows], {name: state[rows] for name, state in states.items()}
    step_rows(values, held, summed, settings, scale)
    table[rows] = values
    for name, state in states.items():
        state[rows] = held[name]
    return of_steps


def update_rows(
    table: Tensor,
    states: Mapping[str, Tensor],
    bags: Bags,
    grad: Tensor,
    settings: FusedOptimizerSettings,
    grid: RowGrid | None = None,
) -> Tensor | None:
    """Make one optimizer step on the rows that a batch has read; the gradients of equal rows are summed first.

    Args:
        table: the table, float32 [rows, dim], updated in place.
        states: the optimizer state from `empty_states`, updated in place.
        bags: the reads of the batch.
        grad: the gradient of the bags, float32 [batch, columns], row-major.
        settings: the optimizer and its constants.
        grid: the grid on which the rows were read, if any.

    Returns:
        The gradient of the grid's steps, [steps], not clipped.
    """
    bags.check(table.shape, grad.shape[1])
    (rows, dim), width = table.shape, grad.shape[1]
    lib = native.library()
    if lib is None:
        return update_rows_reference(table, states, bags, grad, settings, grid)
    scale = 1.0
    if settings.clip_grad_norm < math.inf:
        scale = clip_scale(_square(table, table.shape, bags, grad, grid), settings)
    of_steps = None if grid is None else torch.zeros(grid.step.shape, dtype=torch.float64, device="cpu")
    lib.bag_update(
        float32("table", table, rows, dim), size(0), size(rows), size(dim), *grid_arguments(grid, rows),
        pointer("step_grads", of_steps, torch.float64, *(of_steps.shape if of_steps is not None else ())),
        ctypes.c_uint32(0), *bags.arguments(),
        float32("grad", grad, bags.batch, width), size(width), int64("columns", bags.columns, bags.columns.numel()),
        *constants_and_states(settings, states, torch.float32, rows, dim, scale),
    )  # fmt: skip
    return None if grid is None or of_steps is None else (of_steps * grid.scale).to(grid.step.dtype)


def constants_and_states(
    settings: FusedOptimizerSettings,
    states: Mapping[str, Tensor],
    dtype: torch.dtype,
    rows: int,
    dim: int,
    scale: float,
) -> tuple[Any, ...]:
    """Return the optimizer as C++ arguments: the constants, the states, and the width of each state's rows.

    Raises:
        ValueError: the states are of another optimizer or another table.
    """
    rule = rule_of(settings)
    wanted = rule.states(settings)
    if list(states) != list(wanted):
        raise ValueError(f"{settings.name} keeps {list(wanted)}, got {list(states)}")
    places = [pointer(name, states[name], dtype, *state_shape(per, rows, dim)).value for name, per in wanted.items()]
    widths = [dim if per == "value" else 1 for per in wanted.values()]
    return (
        ctypes.byref(Constants.of(rule, settings, scale)),
        (ctypes.c_void_p * max(1, len(places)))(*places),
        (ctypes.c_size_t * max(1, len(widths)))(*widths),
    )
