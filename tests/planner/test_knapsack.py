"""The knapsack against every combination."""

import ctypes
import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embcomp.planner.knapsack import Item, best, least_nbytes, ranked


@st.composite
def problems(draw):
    """A few tables with items of their own, some items over several tables, and a budget."""
    tables = draw(st.integers(1, 4))
    size, loss = st.integers(0, 50), st.integers(0, 1000)
    items = [
        Item((table,), draw(size), draw(loss) / 64) for table in range(tables) for _ in range(draw(st.integers(1, 4)))
    ]
    for _ in range(draw(st.integers(0, 3))):
        members = draw(st.sets(st.integers(0, tables - 1), min_size=1, max_size=tables))
        items.append(Item(tuple(sorted(members)), draw(size), draw(loss) / 64))
    return items, tables, draw(st.integers(0, 150))


def all_plans(items, tables, nbytes):
    """(loss, bytes, numbers) of every set of items that stores each table once within the budget."""
    by_table = [[i for i, item in enumerate(items) if table in item.tables] for table in range(tables)]
    plans = {}
    for chosen in itertools.product(*by_table):
        plan = tuple(sorted(set(chosen)))
        stored = sorted(table for i in plan for table in items[i].tables)
        taken = sum(items[i].nbytes for i in plan)
        if stored == list(range(tables)) and taken <= nbytes:
            plans[plan] = sum(items[i].loss for i in plan), taken
    return plans


@settings(max_examples=60, deadline=None)
@given(problems())
def test_the_solution_is_the_best_of_all_combinations(problem):
    items, tables, nbytes = problem
    plans, solution = all_plans(items, tables, nbytes), best(items, tables, nbytes)
    if not plans:
        assert solution is None
    else:
        assert solution is not None
        assert solution.loss == pytest.approx(min(loss for loss, _ in plans.values()))
        assert plans[solution.items] == (pytest.approx(solution.loss), solution.nbytes)


@settings(max_examples=30, deadline=None)
@given(problems())
def test_the_least_bytes_are_those_of_the_smallest_plan(problem):
    items, tables, _ = problem
    sizes = [taken for _, taken in all_plans(items, tables, 10**9).values()]
    assert least_nbytes(items, tables) == min(sizes)


def test_plans_come_in_the_order_of_their_loss_without_those_that_another_betters():
    items = [Item((t,), 2 * k, float((3 - k) ** 2 + t)) for t in range(3) for k in range(3)]
    expected = sorted(loss for loss, _ in all_plans(items, 3, 8).values())
    assert [plan.loss for plan in ranked(items, 3, 8)] == pytest.approx(expected)


def test_small_losses_and_large_sizes_are_told_apart():
    items = [Item((0,), 10**12, 1e-9), Item((0,), 10**12 - 1, 2e-9), Item((1,), 10**11, 0.0)]
    assert best(items, 2, 10**12 + 10**11).items == (0, 2)
    assert best(items, 2, 10**12 + 10**11 - 1).items == (1, 2)


def test_a_table_without_an_item_and_a_loss_that_is_not_finite_are_refused():
    with pytest.raises(ValueError, match="no item stores table 1"):
        best([Item((0,), 1, 0.0)], 2, 10)
    with pytest.raises(ValueError, match="nan, which is not finite"):
        best([Item((0,), 1, math.nan)], 1, 10)


def test_the_few_items_of_the_first_pass_are_not_all_there_are():
    """Against bytes that are filled up one by one (dynamic programming), with more items than the first pass takes."""
    draw = random.Random(0)
    items = [Item((t,), draw.randint(1, 60), draw.random()) for t in range(12) for _ in range(25)]
    items += [Item((t, t + 1), draw.randint(1, 90), draw.random()) for t in range(0, 12, 2) for _ in range(8)]
    for budget in (100, 200, 400):
        least = {0: 0.0}
        for first in range(0, 12, 2):  # pairs of tables are apart, so that bytes can be filled up one by one
            ways = [(i.nbytes, i.loss) for i in items if i.tables == (first, first + 1)]
            one, two = ([i for i in items if i.tables == (t,)] for t in (first, first + 1))
            ways += [(a.nbytes + b.nbytes, a.loss + b.loss) for a in one for b in two]
            grown = {}
            for used, loss in least.items():
                for more, own in ways:
                    if used + more <= budget and loss + own < grown.get(used + more, math.inf):
                        grown[used + more] = loss + own
            least = grown
        solution = best(items, 12, budget)
        assert (solution is None) == (not least)
        if solution is not None:
            assert solution.loss == pytest.approx(min(least.values()), abs=1e-6)


def test_nothing_is_printed_by_the_solver(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Some versions of HiGHS print names of their functions; what Python printed before is kept."""
    from scipy import optimize

    milp = optimize.milp

    def loud(*given, **settings):
        ctypes.CDLL(None).puts(b"HighsMipSolverData")
        return milp(*given, **settings)

    monkeypatch.setattr(optimize, "milp", loud)
    print("before")
    items = [Item((0,), 100, 0.0), Item((0,), 10, 2.0), Item((1,), 50, 0.0), Item((1,), 5, 1.0)]
    assert best(items, tables=2, nbytes=105) is not None
    print("after")
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out.split() == ["before", "after"]
