"""The choice of one option for each table within a budget: a multiple-choice knapsack, solved exactly."""

import contextlib
import ctypes
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from embcomp import extras

SLACK = 1e-9  # of the budget: what a solver may round
_CORE = 3  # items of a table that are tried first


@dataclass(frozen=True)
class Item:
    """One way to store some tables.

    Attributes:
        tables: the indices of the tables that it stores, in rising order; several if they share a store.
        nbytes: its bytes.
        loss: its loss.
    """

    tables: tuple[int, ...]
    nbytes: int
    loss: float


@dataclass(frozen=True)
class Solution:
    """Items that store each table once.

    Attributes:
        items: the indices of the items, in rising order.
        nbytes: the bytes of all items together.
        loss: the loss of all items together.
        gap: an upper bound of the difference to the loss of the best solution.
    """

    items: tuple[int, ...]
    nbytes: int
    loss: float
    gap: float


def best(
    items: Sequence[Item], tables: int, nbytes: int, *, seconds: float = 60.0, near: float = 0.0
) -> Solution | None:
    """Return the items of least loss that store every table once in at most `nbytes`; None if there are none.

    minimise sum_i loss_i x_i over x_i in {0, 1}, where sum over the items of a table = 1 for each table and sum_i
    nbytes_i x_i <= nbytes: the multiple-choice knapsack (Sinha and Zoltners 1979), with items over several tables.
    Solved by branch and cut (HiGHS, by `scipy.optimize.milp`).

    Args:
        items: the items to choose from.
        tables: the number of tables.
        nbytes: the budget in bytes.
        seconds: the time limit of each of two passes in seconds; the best plan until then is returned, with its gap.
        near: the allowed distance of the loss from the best, as a share of it.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: no item stores a table, or a loss is not finite.

    Example:
        >>> items = [Item((0,), 100, 0.0), Item((0,), 10, 2.0), Item((1,), 50, 0.0), Item((1,), 5, 1.0)]
        >>> best(items, tables=2, nbytes=105)
        Solution(items=(0, 3), nbytes=105, loss=1.0, gap=0.0)
    """
    return next(ranked(items, tables, nbytes, seconds=seconds, near=near), None)


def ranked(
    items: Sequence[Item], tables: int, nbytes: int, *, seconds: float = 60.0, near: float = 0.0
) -> Iterator[Solution]:
    """Yield all solutions of `best`, that of least loss first: each is excluded before the next is searched."""
    _check(items, tables)
    useful = _undominated(items)
    problem = _Problem([items[i] for i in useful], tables, nbytes)
    relaxed = problem.relaxed()
    cuts: list[tuple[int, ...]] = []
    while relaxed is not None and (found := _solved(problem, *relaxed, cuts, seconds, near)) is not None:
        cuts.append(found.items)
        if found.nbytes <= nbytes:  # by rounding; the slack is far below a byte for all but huge budgets
            yield dataclasses.replace(found, items=tuple(useful[n] for n in found.items))


def smallest(items: Sequence[Item], tables: int) -> list[int]:
    """Return the indices of the items that store every table in the fewest bytes."""
    _check(items, tables)
    if all(len(item.tables) == 1 for item in items):
        order = sorted(range(len(items)), key=lambda i: items[i].nbytes, reverse=True)
        return sorted({items[i].tables: i for i in order}.values())
    sized = [Item(item.tables, 0, float(item.nbytes)) for item in items]
    solution = best(sized, tables, 0)
    assert solution is not None  # each table has an item, and there is no limit
    return list(solution.items)


def least_nbytes(items: Sequence[Item], tables: int) -> int:
    """Return the fewest bytes in which every table can be stored."""
    return sum(items[i].nbytes for i in smallest(items, tables))


def _check(items: Sequence[Item], tables: int) -> None:
    covered = {table for item in items for table in item.tables}
    if missing := set(range(tables)) - covered:
        raise ValueError(f"no item stores table {min(missing)}")
    for item in items:
        if not abs(item.loss) < float("inf"):
            raise ValueError(f"an item of tables {item.tables} has the loss {item.loss}, which is not finite")


def _undominated(items: Sequence[Item]) -> list[int]:
    """The indices of the items that no other item of the same tables beats in both bytes and loss."""
    kept: list[int] = []
    lowest: dict[tuple[int, ...], float] = {}
    for i in sorted(range(len(items)), key=lambda i: (items[i].nbytes, items[i].loss)):
        if items[i].loss < lowest.get(items[i].tables, float("inf")):
            lowest[items[i].tables] = items[i].loss
            kept.append(i)
    return sorted(kept)


def _solved(
    problem: "_Problem", bound: float, prices: Any, cuts: Sequence[tuple[int, ...]], seconds: float, near: float
) -> Solution | None:
    """Solve over a few promising items, and again over those that may still better the first solution.

    The linear relaxation has a price for each item: the loss of the best plan with it is at least that much above the
    bound. So items whose price exceeds the distance of the first solution from the bound are in no better one.
    """
    core = problem.core(prices)
    solution = problem.solved(core, cuts, seconds, near)
    left = list(range(len(problem.items))) if solution is None else problem.within(prices, solution.loss - bound)
    if not set(left) <= set(core):
        again = problem.solved(left, cuts, seconds, near)
        if again is not None and (solution is None or again.loss <= solution.loss):
            solution = again
        elif solution is not None:  # the time was too short for a better one, or none is as much better as was asked
            solution = dataclasses.replace(solution, gap=solution.loss - bound)
    return solution


class _Problem:
    """The knapsack over some items, in units that suit HiGHS: it stops at gaps of 1e-6 in the units it is given."""

    def __init__(self, items: Sequence[Item], tables: int, nbytes: int) -> None:
        np, _, sparse = _scipy()
        self.items = items
        losses = np.array([item.loss for item in items])
        self.unit = float(np.abs(losses).max()) / 1e6 or 1.0  # losses are small numbers, bytes large ones
        self.losses = losses / self.unit
        per = max(1.0, nbytes / 1e6)
        self.sizes = np.array([item.nbytes for item in items], dtype=float) / per
        self.limit = nbytes / per * (1 + SLACK)
        rows, columns = zip(*((t, n) for n, item in enumerate(items) for t in item.tables), strict=True)
        self.once = sparse.csc_array((np.ones(len(rows)), (rows, columns)), shape=(tables, len(items)))

    def relaxed(self) -> tuple[float, Any] | None:
        """Return the least loss with shares of items, and the price of each item; None if nothing fits."""
        np, optimize, sparse = _scipy()
        result = optimize.linprog(
            self.losses, sparse.csr_array(self.sizes[None, :]), [self.limit], self.once, np.ones(self.once.shape[0]),
            method="highs",
        )  # fmt: skip
        if result.x is None:
            return None
        covered = self.once.T @ result.eqlin.marginals
        return result.fun * self.unit, self.losses - covered - self.sizes * result.ineqlin.marginals[0]

    def core(self, prices: Any) -> list[int]:
        """Return the items of the lowest prices of each table, and its smallest one."""
        np, *_ = _scipy()
        kept: set[int] = set()
        for table in self.once.tocsr():
            own = table.nonzero()[-1]
            kept |= {*own[np.argsort(prices[own], kind="stable")[:_CORE]].tolist(), int(own[self.sizes[own].argmin()])}
        return sorted(kept)

    def within(self, prices: Any, loss: float) -> list[int]:
        """Return the items whose price is at most a loss."""
        return (prices <= loss / self.unit * (1 + 1e-6) + 1e-3).nonzero()[0].tolist()

    def solved(
        self, of: Sequence[int], excluded: Sequence[tuple[int, ...]], seconds: float, near: float
    ) -> Solution | None:
        """Return the best plan of some of the items that is not excluded; None if there is none."""
        np, optimize, sparse = _scipy()
        column = {n: c for c, n in enumerate(of)}
        limits = [sparse.csr_array(self.sizes[None, of])]
        most = [self.limit]
        for plan in excluded:
            if all(n in column for n in plan):
                row = np.zeros((1, len(of)))
                row[0, [column[n] for n in plan]] = 1
                limits.append(sparse.csr_array(row))
                most.append(len(plan) - 1)
        with _silently():
            result = optimize.milp(
                self.losses[of],
                constraints=[
                    optimize.LinearConstraint(self.once[:, of], 1, 1),
                    optimize.LinearConstraint(sparse.vstack(limits), -np.inf, most),
                ],
                integrality=np.ones(len(of)),
                bounds=optimize.Bounds(0, 1),
                options={"time_limit": seconds, "mip_rel_gap": max(near, 1e-9)},
            )
        if result.x is None:
            return None
        chosen = tuple(n for n, x in zip(of, result.x, strict=True) if x > 0.5)
        loss = sum(self.items[n].loss for n in chosen)
        bound = loss if result.mip_dual_bound is None else float(result.mip_dual_bound) * self.unit
        gap = max(0.0, loss - bound) if result.status == 1 or near else 0.0
        return Solution(chosen, sum(self.items[n].nbytes for n in chosen), loss, gap)


@contextlib.contextmanager
def _silently() -> Iterator[None]:
    """Drop what compiled code writes to standard output: some versions of HiGHS print names of their functions."""
    try:
        stdio, kept = ctypes.CDLL(None), os.dup(1)
    except (OSError, TypeError):  # no such library by this name, or no standard output
        yield
        return
    sys.stdout.flush()
    stdio.fflush(None)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        stdio.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _scipy() -> tuple[Any, Any, Any]:
    try:
        import numpy as np
        from scipy import optimize, sparse
    except ImportError as error:
        raise ImportError(f"choose needs SciPy: {extras.install('planner')}") from error
    return np, optimize, sparse
