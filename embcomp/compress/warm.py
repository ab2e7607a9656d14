"""Warm starts: a fit of the compressed rows to trained vectors that works for every combiner."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from embcomp.compress.warm_sums import fit_sums
from embcomp.methods.base import Rows
from embcomp.ops.row_sums import add_rows
from embcomp.trained import BLOCK, Trained, Unknowns, pooled_rows, usage

_ROUNDS = 8  # of Gauss-Newton, where a combiner is not linear
_JUDGED = 4  # blocks of ids


@torch.no_grad()
def warm_start(trained: Sequence[Trained], stores: Mapping[str, Tensor], steps: int = 20) -> None:
    """Fill the stores so that the compressed tables come close to the trained ones.

    Minimises sum_id counts[id] |vectors[id] - combined rows|^2 over all rows, by conjugate gradients preconditioned by
    how often each row is read. If each id reads one row, the first step is the exact solution, the weighted mean. Only
    the derivatives of a combiner are used. For a combiner that is not linear, Gauss-Newton steps start from the rows as
    they are; factors that the combiner declares neutral are set to that value and stay there. Rows that no id maps to
    keep their values.

    Args:
        trained: all tables that read these stores.
        stores: the rows [rows, dim] by store, filled in place.
        steps: the maximum number of conjugate-gradient steps.

    Raises:
        ValueError: the fit of a table is worse than zeros would be.
    """
    for group in _groups([_started(table) for table in trained]):
        _fit(group, stores, steps)


def _groups(trained: Sequence[Trained]) -> list[list[Trained]]:
    """Split tables into groups that are fitted together: those with a common store, directly or through others."""
    joined: dict[str, str] = {}  # a store to another of its group, or to itself

    def group(store: str) -> str:
        while joined.setdefault(store, store) != store:
            joined[store] = store = joined[joined[store]]
        return store

    for table in trained:
        for chunk in table.plan.chunks:
            joined[group(chunk.store)] = group(table.plan.chunks[0].store)
    groups: dict[str, list[Trained]] = {}
    for table in trained:
        groups.setdefault(group(table.plan.chunks[0].store), []).append(table)
    return list(groups.values())


def _started(table: Trained) -> Trained:
    """Fit the combiner to the vectors as far as possible before the rows are fitted, and return the remaining table."""
    left = table.plan.combiner.start_(table.vectors, table.counts)
    if left is None:
        return table
    combiner, vectors = left
    return _started(Trained(dataclasses.replace(table.plan, combiner=combiner), vectors, table.counts))


def _fit(trained: list[Trained], stores: Mapping[str, Tensor], steps: int) -> None:
    """Fit tables that share stores, as in `warm_start`."""
    if all(table.is_mean for table in trained):
        return _mean(trained, stores)
    for table in trained:
        for chunk, value in table.plan.combiner.neutral.items():
            stores[table.plan.chunks[chunk].store].fill_(value)
    widths = {chunk.store: stores[chunk.store].shape[1] for table in trained for chunk in table.plan.chunks}
    if all(table.is_linear and table.first_columns(widths) is not None for table in trained):
        fit_sums(trained, stores, steps)
        return _check(trained, stores)
    parameters = {
        f"{table.plan.table.name}.{name}": parameter
        for table in trained
        for name, parameter in table.plan.combiner.named_parameters()
    }
    targets = {name: stores[name] for table in trained for _, name in table.learned} | parameters
    used = usage(trained, targets)
    linear = all(table.is_linear for table in trained)
    x = {name: target.float().clone() for name, target in targets.items()}
    rounds = _ROUNDS
    for table in trained:
        known = table.plan.combiner.rows_of(table.vectors, table.counts)
        for chunk, rows in zip(table.plan.chunks, known or (), strict=known is not None):
            x[chunk.store] = rows.to(x[chunk.store])
        if known is not None and len(table.vectors) > _JUDGED * BLOCK:
            rounds = 1  # it is close already, and a round reads the table dozens of times
    if linear:
        for name in x:
            x[name][(used[name] > 0).squeeze(-1)] = 0.0  # zeros, so that what cannot be determined stays there
        _solve(trained, x, used, steps, by=1.0)
    else:
        _descend(trained, x, used, steps, rounds)
    _check(trained, x)
    for name, target in targets.items():
        read = used[name] > 0
        target.copy_(torch.where(read, x[name], target.float()).to(target.dtype))


def _mean(trained: list[Trained], stores: Mapping[str, Tensor]) -> None:
    """Set each row that is read to the weighted mean of the values it stands for, in place and in one pass."""
    targets = {name: stores[name] for table in trained for _, name in table.learned}
    used = usage(trained, targets)
    sums = {name: target if target.dtype == torch.float32 else target.float() for name, target in targets.items()}
    for name, total in sums.items():
        total.masked_fill_(used[name] > 0, 0.0)
    for table in trained:
        widths = [sums[store].shape[1] for _, store in table.learned]
        for (rows, _), vectors, counts in table.blocks():
            for (i, store), values in zip(table.learned, vectors.split(widths, dim=1), strict=True):
                add_rows(sums[store], rows[i].rows, counts * values, rows[i].weights)
    for name, total in sums.items():
        total.div_(used[name].masked_fill_(used[name] <= 0, 1.0))
        if total is not targets[name]:
            targets[name].copy_(total)


def _solve(trained: list[Trained], x: Unknowns, used: Unknowns, steps: int, by: float) -> None:
    """Solve the problem linearised at `x` by conjugate gradients on its normal equations; move `x` by `by` times it."""
    residual = _sum(trained, x, lambda out, vectors, tangent: vectors - out)
    delta = {name: torch.zeros_like(value) for name, value in x.items()}
    scaled = _scale(residual, used)
    direction = {name: value.clone() for name, value in scaled.items()}
    size = start = _dot(residual, scaled)
    for _ in range(steps):
        if size <= 1e-12 * start:
            break
        image = _sum(trained, x, lambda out, vectors, tangent: tangent, direction)
        curvature = _dot(direction, image)
        if curvature <= 0.0:
            break
        for name in x:
            delta[name] += size / curvature * direction[name]
            residual[name] -= size / curvature * image[name]
        scaled = _scale(residual, used)
        new_size = _dot(residual, scaled)
        for name in x:
            direction[name] = scaled[name] + new_size / size * direction[name]
        size = new_size
    for name in x:
        x[name] += by * delta[name]


def _descend(trained: list[Trained], x: Unknowns, used: Unknowns, steps: int, rounds: int) -> None:
    """Run Gauss-Newton: each round solves the linearised problem, and shortens the step until the error falls."""
    error = _error(trained, x)
    for _ in range(rounds):
        before = {name: value.clone() for name, value in x.items()}
        _solve(trained, x, used, steps, by=1.0)
        delta = {name: x[name] - before[name] for name in x}
        by, new = 1.0, _error(trained, x)
        while not new < error and by > 1e-3:
            by /= 4
            for name in x:
                x[name] = before[name] + by * delta[name]
            new = _error(trained, x)
        if not new < error:
            for name in x:
                x[name] = before[name]
            return
        if new > 0.999 * error:
            return
        error = new


def _sum(
    trained: list[Trained],
    x: Unknowns,
    value: Callable[[Tensor, Tensor, Tensor], Tensor],
    direction: Unknowns | None = None,
) -> Unknowns:
    """Sum J^T counts * value(combined, vectors, J direction) over ids, with J the derivative of the vectors at `x`."""
    result = {name: torch.zeros_like(target) for name, target in x.items()}
    for table in trained:
        combine, names = _combination(table)
        for (rows, handed), vectors, counts in table.blocks():
            inputs = tuple(value.requires_grad_() for value in _inputs(table, rows, x, names))
            with torch.enable_grad():
                out = combine(handed, *inputs)
            along = None if direction is None else _inputs(table, rows, direction, names)
            tangent = vectors if along is None else _tangent(out, inputs, along)
            pulled = _pull(out, inputs, counts * value(out.detach(), vectors, tangent))
            for (i, store), grad in zip(table.learned, pulled, strict=False):
                add_rows(result[store], rows[i].rows, grad, rows[i].weights)
            for name, grad in zip(names, pulled[len(table.learned) :], strict=True):
                result[name] += grad
    return result


def _pull(out: Tensor, inputs: tuple[Tensor, ...], grad: Tensor, graph: bool = False) -> tuple[Tensor, ...]:
    """Return J^T grad."""
    return torch.autograd.grad(out, inputs, grad, retain_graph=True, create_graph=graph, materialize_grads=True)


def _tangent(out: Tensor, inputs: tuple[Tensor, ...], direction: tuple[Tensor, ...]) -> Tensor:
    """Return J direction, as the derivative of <J^T u, direction> by u: not every module has a forward derivative."""
    u = torch.zeros_like(out, requires_grad=True)
    with torch.enable_grad():
        pulled = _pull(out, inputs, u, graph=True)
        along = sum((grad * value).sum() for grad, value in zip(pulled, direction, strict=True))
    return torch.autograd.grad(along, u, retain_graph=True, materialize_grads=True)[0]  # pyright: ignore


def _combination(table: Trained) -> tuple[Callable[..., Tensor], list[str]]:
    """Return the combiner as a function of handed numbers, learned chunks and parameters, and the parameters' names."""
    combiner, learned = table.plan.combiner, [i for i, _ in table.learned]
    inner = [name for name, _ in combiner.named_parameters()]

    def combine(handed: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        given = dict(zip(learned, inputs, strict=False))
        first = inputs[0]
        constants = {i: first.new_full(first.shape, value) for i, value in combiner.neutral.items()}
        chunks = [*((given | constants)[i] for i in range(len(table.plan.chunks))), *handed]
        if not inner:
            return combiner(chunks)
        return functional_call(combiner, dict(zip(inner, inputs[len(learned) :], strict=True)), (chunks,))

    return combine, [f"{table.plan.table.name}.{name}" for name in inner]


def _inputs(table: Trained, rows: list[Rows], x: Mapping[str, Tensor], names: list[str]) -> tuple[Tensor, ...]:
    """Return the inputs of `_combination` after the handed numbers: the learned chunks of a block, the parameters."""
    read = [pooled_rows(x[store], rows[i]) for i, store in table.learned]
    return *read, *(x[name].detach().clone() for name in names)


def _error(trained: list[Trained], x: Unknowns) -> float:
    """The sum over ids of counts |vectors - combined|^2."""
    total = 0.0
    for table in trained:
        combine, names = _combination(table)
        for (rows, handed), vectors, counts in table.blocks():
            missed = vectors - combine(handed, *_inputs(table, rows, x, names))
            total += float((counts * missed.square()).sum(dtype=torch.float64))
    return total


def _check(trained: list[Trained], x: Mapping[str, Tensor]) -> None:
    """Raise ValueError if the vectors of these tables are fitted worse than by zeros, judged by the first ids."""
    lost = whole = 0.0
    for table in trained:
        combine, names = _combination(table)
        for (rows, handed), vectors, counts in itertools.islice(table.blocks(), _JUDGED):
            missed = vectors - combine(handed, *_inputs(table, rows, x, names))
            lost += float((counts * missed.square()).sum(dtype=torch.float64))
            whole += float((counts * vectors.square()).sum(dtype=torch.float64))
    if not lost <= 1.01 * whole:
        kinds = sorted({type(table.plan.combiner).__name__ for table in trained})
        raise ValueError(
            f"tables {[table.plan.table.name for table in trained]}: the warm start misses the trained vectors by "
            f"{lost / whole:.3g} of their squares, more than zeros would ({', '.join(kinds)} cannot be fitted so); use "
            "init='fresh'"
        )


def _scale(residual: Unknowns, used: Unknowns) -> Unknowns:
    return {name: value / used[name].clamp(min=1e-30) for name, value in residual.items()}


def _dot(a: Unknowns, b: Unknowns) -> float:
    return sum(float((a[name].double() * b[name]).sum()) for name in a)  # float32 loses products of small numbers
