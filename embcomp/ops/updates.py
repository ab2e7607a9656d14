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
from embcomp.ops.checks import float32, pointer, size
from embcomp.ops.grid import RowGrid
from embcomp.ops.optimizers import Constants, FusedOptimizerSettings, Per, rule_of
from embcomp.ops.requests import Bags, requests_of
from embcomp.ops.tables import empty_table

MOST_STATES = 3
_NORM_EPS = 1e-6  # as torch.nn.utils.clip_grad_norm_ has it


class Optimizer(ctypes.Structure):
    """The optimizer of one table in the form for C++ (`embcomp/native/update.cpp`)."""

    _fields_ = [
        ("constants", Constants), ("states", ctypes.c_void_p * MOST_STATES),
        ("widths", ctypes.c_uint64 * MOST_STATES), ("step_grads", ctypes.c_void_p), ("seed", ctypes.c_uint64),
    ]  # fmt: skip


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
    stored = pointer("table", table, torch.float32, rows, dim)
    request, total = bags.request(stored, rows, dim, grid), ctypes.c_double()
    native.within_memory(
        lib.square_of_gradient, ctypes.byref(request), float32("grad", grad, bags.batch, width), size(width),
        ctypes.byref(total),
    )  # fmt: skip
    return total.value


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
    """Compute `update_tables` for one table."""
    return update_tables([table], [states], [bags], grad, settings, [grid])[0]


def update_tables(
    tables: Sequence[Tensor],
    states: Sequence[Mapping[str, Tensor]],
    parts: Sequence[Bags],
    grad: Tensor,
    settings: FusedOptimizerSettings,
    grids: Sequence[RowGrid | None] | None = None,
    requests: Any = None,
) -> list[Tensor | None]:
    """Make one optimizer step on the rows that a batch has read; the gradients of equal rows are summed first.

    Args:
        tables: the tables, float32 [rows, dim] each, updated in place.
        states: the optimizer state of each from `empty_states`, updated in place.
        parts: the reads of the batch from each.
        grad: the gradient of the bags, float32 [batch, columns], row-major.
        settings: the optimizer and its constants.
        grids: the grid of each table on which its rows were read; None for none.
        requests: the requests that `requests_of` made of all this for the look-up, if nobody can have changed it since;
            None to check everything.

    Returns:
        The gradient of each grid's steps, [steps], not clipped; None for a table without a grid.
    """
    grids = [None] * len(tables) if grids is None else grids
    asked = list(zip(tables, states, parts, grids, strict=True))
    lib = native.library()
    if lib is None:
        for table, _, bags, _ in asked:
            bags.check(table.shape, grad.shape[1])
        return [update_rows_reference(table, held, bags, grad, settings, grid) for table, held, bags, grid in asked]
    if requests is None or any((own.table or 0) != t.data_ptr() for own, t in zip(requests, tables, strict=True)):
        requests = requests_of(tables, parts, grad.shape[1], grids)  # tables may have moved (`share_memory_`)
    of_steps = [
        None if grid is None else torch.zeros(grid.step.shape, dtype=torch.float64, device="cpu") for grid in grids
    ]
    optimizers = []
    for (table, held, bags, grid), step_grads in zip(asked, of_steps, strict=True):
        scale = 1.0
        if settings.clip_grad_norm < math.inf:
            scale = clip_scale(_square(table, table.shape, bags, grad, grid), settings)
        rows, dim = table.shape
        optimizers.append(optimizer_of(settings, held, torch.float32, rows, dim, scale, step_grads=step_grads))
    update_requests(lib, requests, optimizers, grad)
    return [
        None if grid is None or sums is None else (sums * grid.scale).to(grid.step.dtype)
        for grid, sums in zip(grids, of_steps, strict=True)
    ]


def update_requests(lib: ctypes.CDLL, requests: Any, optimizers: Sequence[Optimizer], grad: Tensor) -> None:
    """Make the step of an array of requests that are checked, by the compiled form."""
    number, width = len(requests), grad.shape[1]
    place = float32("grad", grad, requests[0].batch, width)
    threads = size(torch.get_num_threads())
    every = (Optimizer * number)(*optimizers)
    native.within_memory(lib.update_tables, requests, size(number), place, size(width), every, threads)


def optimizer_of(
    settings: FusedOptimizerSettings,
    states: Mapping[str, Tensor],
    dtype: torch.dtype,
    rows: int,
    dim: int,
    scale: float,
    *,
    step_grads: Tensor | None = None,
    seed: int = 0,
) -> Optimizer:
    """Return the optimizer of a table in the form for C++.

    Raises:
        ValueError: the states are of another optimizer or another table.
    """
    rule = rule_of(settings)
    wanted = rule.states(settings)
    if list(states) != list(wanted):
        raise ValueError(f"{settings.name} keeps {list(wanted)}, got {list(states)}")
    places = [pointer(name, states[name], dtype, *state_shape(per, rows, dim)).value for name, per in wanted.items()]
    sums = None
    if step_grads is not None:
        sums = pointer("step_grads", step_grads, torch.float64, *step_grads.shape).value
    return Optimizer(
        constants=Constants.of(rule, settings, scale), states=(ctypes.c_void_p * MOST_STATES)(*places),
        widths=(ctypes.c_uint64 * MOST_STATES)(*[dim if per == "value" else 1 for per in wanted.values()]),
        step_grads=sums, seed=seed,
    )  # fmt: skip
