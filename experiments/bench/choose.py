"""`python -m experiments bench choose`: the time of the exact choice, and its loss against a greedy choice.

Rows against "1 s" are seconds on this machine; rows against "the best loss" are losses.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

import embcomp
from embcomp.planner.knapsack import Item, best
from experiments.bench import BenchRow
from experiments.bench.timing import seconds, spread

if TYPE_CHECKING:
    from rich.console import Console

SHARE = 0.1  # of the bytes of the largest items


def run(console: Console, *, options: int = 40, rounds: int = 5, seed: int = 0) -> list[BenchRow]:
    """Time the choice for 26 and 1,000 tables with several options each, and report its bound on the optimality gap."""
    rows = []
    for tables in (26, 1000):
        items = problem(tables, options, seed)
        budget = int(SHARE * sum(max(i.nbytes for i in items if i.tables == (t,)) for t in range(tables)))
        solve = partial(best, items, tables, budget)
        timed = seconds({"exact": solve}, rounds=rounds, warmup=1)
        name = f"{tables} tables x {options} options"
        solution = solve()
        assert solution is not None
        rows.append(spread(name, timed["exact"], "1 s"))
        gap = 1 + solution.gap / solution.loss
        steepest = slope(items, tables, budget) / solution.loss
        rows += [BenchRow(f"{name}, at most this above the best", gap, gap, gap, "the best loss")]
        rows += [BenchRow(f"{name}, down the steepest slope", steepest, steepest, steepest, "the best loss")]
    for tables in (26, 1000):
        given = [embcomp.Table(f"t{i}", 10 + i * i % 100_003, 16) for i in range(tables)]
        timed = seconds({"choose": partial(embcomp.choose, given, "10%")}, rounds=1, warmup=0)
        rows.append(spread(f"embcomp.choose, {tables} tables, sizes alone", timed["choose"], "1 s"))
    return rows


def problem(tables: int, options: int, seed: int) -> list[Item]:
    """Make tables of very different sizes, with options whose losses mostly fall with their bytes."""
    draw = random.Random(seed)
    items = []
    for table in range(tables):
        full, worth = int(10 ** draw.uniform(2, 8)), draw.lognormvariate(0, 1.5)
        for _ in range(options):
            share = 10 ** draw.uniform(-3, 0)
            items.append(Item((table,), max(1, int(full * share)), worth * draw.lognormvariate(0, 0.3) * share**-0.5))
    return items


def slope(items: list[Item], tables: int, nbytes: int) -> float:
    """Return the loss of a greedy choice, which starts at the smallest items and takes the steepest step that fits."""
    by_table = [sorted((i for i in items if i.tables == (t,)), key=lambda i: i.nbytes) for t in range(tables)]
    chosen = [members[0] for members in by_table]
    left = nbytes - sum(item.nbytes for item in chosen)
    while True:
        steps = [
            ((chosen[t].loss - item.loss) / (item.nbytes - chosen[t].nbytes), t, item)
            for t, members in enumerate(by_table)
            for item in members
            if 0 < item.nbytes - chosen[t].nbytes <= left and item.loss < chosen[t].loss
        ]
        if not steps:
            return sum(item.loss for item in chosen)
        _, t, item = max(steps, key=lambda step: step[0])
        left -= item.nbytes - chosen[t].nbytes
        chosen[t] = item
