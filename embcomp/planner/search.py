"""The search for the best plan: a knapsack over expected losses, which are examined closer when they are used."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from embcomp.formats import grouped
from embcomp.methods.base import Method
from embcomp.methods.budget import SMALL
from embcomp.methods.full import Full
from embcomp.methods.low_bit import LowBit
from embcomp.methods.plan import Count
from embcomp.methods.quotient_remainder import QuotientRemainder
from embcomp.planner.choice import Choice, Point, TableChoice, kind
from embcomp.planner.estimates import ByRules, Estimates
from embcomp.planner.growth import enlarged
from embcomp.planner.knapsack import Item, Solution, best, least_nbytes, ranked, smallest
from embcomp.planner.options import MANY, Option, rows_of
from embcomp.planner.tables import Held

Allowed = Callable[[Option], bool]

PRICE = 1e-5
"""The price of the whole budget as a share of the worth of all tables, so that no byte is spent without need."""

EXACT = 50
"""The most tables for which the best plan is proven to be the best."""

NEAR = 1e-4
"""The distance from the best plan, as a share of its loss, at which a search over more tables ends."""

TOGETHER = 10
"""The number of plans to measure as a whole, as the losses of tables that meet in a product do not simply add up."""


RIVAL = 1.5
"""The expected loss up to which a plan competes in short trainings, divided by that of the best.

Short trainings start at the trained tables, which flatters ranks and few bits, so that they only decide where the
expected losses are close."""


class Search:
    """The search over options, with losses by an estimate."""

    def __init__(
        self, held: Sequence[Held], options: Sequence[Option], judge: Estimates, count: Count, budget: int
    ) -> None:
        self.held, self.options, self.judge, self.budget = held, options, judge, budget
        self.count: Count = count
        self.near = 0.0 if len(held) <= EXACT else NEAR

    def items(self, allowed: Allowed = lambda option: True) -> tuple[list[Option], list[Item]]:
        """Return the options that are allowed and did not fail, and their items for the knapsack."""
        options = [o for o in self.options if math.isfinite(self.judge.loss(o)) and (allowed(o) or self._only(o))]
        sizes = [option.nbytes(self.count) for option in options]
        items = [
            Item(option.tables, size, self.judge.loss(option) + self._price(size))
            for option, size in zip(options, sizes, strict=True)
        ]
        return options, items

    def _price(self, nbytes: int, budget: int | None = None) -> float:
        return PRICE * sum(self.judge.worth) / max(1, self.budget if budget is None else budget) * nbytes

    def cost(self, plan: Sequence[Option]) -> float:
        """Return the expected loss of a plan, and the price of its bytes."""
        return self.judge.joint(plan) + self._price(sum(option.nbytes(self.count) for option in plan))

    def _only(self, option: Option) -> bool:
        return isinstance(option.method, Full) and bool(self.held[option.tables[0]].kept)

    def check(self) -> None:
        """Raise ValueError if even the smallest options exceed the budget."""
        options, items = self.items()
        if self._smallest(items) <= self.budget:
            return
        fewest = [options[i] for i in smallest(items, len(self.held))]
        least = sum(option.nbytes(self.count) for option in fewest)
        if least > self.budget:
            largest = max(fewest, key=lambda option: option.nbytes(self.count))
            names, kept = [self.held[i].name for i in largest.tables], self.held[largest.tables[0]].kept
            which = f"table {names[0]!r} takes" if len(names) == 1 else f"tables {names} together take"
            why = f"stays as it is: {kept}" if kept else kind(largest.method)
            remedy = "let it be compressed" if kept else "give options that take less"
            raise ValueError(
                f"a budget of {grouped(self.budget)} bytes ({self.count}) is too small: the least possible is "
                f"{grouped(least)}, of which {which} {grouped(largest.nbytes(self.count))} ({why}); raise the budget, "
                f"or {remedy}"
            )

    def _smallest(self, items: Sequence[Item]) -> float:
        """The bytes of the smallest options of each table alone, which is the minimum unless tables share stores."""
        smallest = [math.inf] * len(self.held)
        for item in items:
            if len(item.tables) == 1:
                smallest[item.tables[0]] = min(smallest[item.tables[0]], item.nbytes)
        return sum(smallest)

    def solved(
        self, allowed: Callable[[Option], bool] = lambda option: True, times: float = 1.0
    ) -> list[Option] | None:
        """Return the best plan from the allowed options, after examining all options in it."""
        for _ in range(10 * len(self.options)):
            options, items = self.items(allowed)
            try:
                solution = best(items, len(self.held), int(self.budget * times), near=self.near)
            except ValueError:  # a table for which nothing is allowed
                return None
            if solution is None:
                return None
            plan = [options[i] for i in solution.items]
            if not self._learned(plan):
                return plan
        raise AssertionError("an option is learned of once")

    def _learned(self, plan: Sequence[Option]) -> bool:
        """Examine every option of a plan; return whether any loss changed."""
        changed = [self.judge.learn(option) for option in plan]
        return any(changed)

    def candidates(self, in_time: bool = False) -> list[list[Option]]:
        """Return plans to examine closer.

        These are the best one of each kind of method, the best ones without one of the measured parts of the best of
        all, and its runners-up, most of which only differ from it in a table of few ids.

        Args:
            in_time: True to end when there is no time left to measure plans as a whole; the best one is the first.
        """
        plans: list[list[Option]] = []

        def add(plan: list[Option] | None) -> None:
            if plan is not None and not any({id(o) for o in plan} == {id(o) for o in other} for other in plans):
                plans.append(plan)

        cheap = self.solved(_no_codes)  # first, as the probes of codes take most of the time there is
        add(self.solved())
        add(cheap)
        if not plans:
            raise ValueError(f"no plan is left: {self._left_out()}")
        for allowed in (_no_rank, _no_sharing, _bits_alone, _shared_alone, _halves_alone):
            if in_time and self.judge.late:
                return plans
            add(self.solved(allowed))
        for used in sorted(plans[0], key=lambda option: -self.held[option.tables[0]].nbytes):
            if in_time and self.judge.late:
                return plans
            if len(plans) < TOGETHER and not (_no_codes(used) and _no_rank(used)):
                add(self.solved(_but(used)))
        options, items = self.items()
        near: Iterator[Solution] = itertools.islice(ranked(items, len(self.held), self.budget), TOGETHER)
        for solution in near if len(self.options) < 5000 else ():
            if len(plans) >= TOGETHER or (in_time and self.judge.late):
                break
            plan = [options[i] for i in solution.items]
            if not self._learned(plan):
                add(plan)
        return plans

    def _left_out(self) -> str:
        """The tables all of whose options failed."""
        fine = {i for o in self.options if math.isfinite(self.judge.loss(o)) for i in o.tables}
        names = [held.name for i, held in enumerate(self.held) if i not in fine]
        return f"every option of {names} failed" if names else "the options that did not fail take too many bytes"

    def rivals(self) -> list[list[Option]]:
        """Return the plans that short trainings decide between, those of the least expected loss first.

        They differ in more than small tables, and are not expected to lose much more than the best.
        """
        first, *others = sorted(self.candidates(in_time=True), key=self.cost)
        most = RIVAL * self.cost(first)
        plans: dict[object, list[Option]] = {}
        for plan in [first, *(plan for plan in others if self.cost(plan) <= most)]:
            grown = self.grown(plan)  # before they are compared: two ranks may grow into one
            plans.setdefault(self._way(grown), grown)
        return list(plans.values())

    def _way(self, plan: Sequence[Option]) -> object:
        """The kind and the bits of each large table's method in a plan."""
        large = [o for o in plan if any((self.held[i].table.num_embeddings or SMALL + 1) > SMALL for i in o.tables)]
        return tuple((o.tables, kind(o.method), _bits(o.method)) for o in large)

    def best(self) -> list[Option]:
        """Return the plan of least loss; the most promising ones are measured together."""
        if isinstance(self.judge, ByRules):
            plan = self.solved()
            assert plan is not None  # `check` was passed
            return self.grown(plan)
        return self.grown(min(self.candidates(in_time=True), key=self.cost))

    def grown(self, plan: list[Option], budget: int | None = None) -> list[Option]:
        """Return the plan with shared rows and ranks enlarged by the rest of the budget, the largest loss first."""
        left = (self.budget if budget is None else budget) - sum(option.nbytes(self.count) for option in plan)
        grown = list(plan)
        for place in sorted(range(len(plan)), key=lambda place: -self.judge.loss(plan[place])):
            option = plan[place]
            if all(i in self.judge.silent for i in option.tables):
                continue
            held = [self.held[i] for i in option.tables]
            grown[place] = enlarged(option, held, self.count, left, self.judge)
            left -= grown[place].nbytes(self.count) - option.nbytes(self.count)
        return grown

    def choice(self, plan: Sequence[Option], level: int) -> Choice:
        """Make the `Choice` of a plan."""
        of_table = {i: option for option in plan for i in option.tables}
        loss = self.judge.joint(plan)
        richer = self.grown(self.solved(times=1.1) or list(plan), int(1.1 * self.budget))
        gain = max(0.0, sum(map(self.judge.loss, plan)) - sum(map(self.judge.loss, richer)))
        richer_of = {i: option for option in richer for i in option.tables}
        lines = [self._line(i, of_table[i], richer_of[i]) for i in range(len(self.held))]
        return Choice(lines, self.budget, self.count, level, loss, self.curve(), gain)

    def _line(self, i: int, option: Option, richer: Option) -> TableChoice:
        held, worth = self.held[i], self.judge.worth
        sizes = {j: max(1, self.held[j].nbytes) for j in option.tables}
        more = "" if _alike(option, richer) else f"{kind(richer.method)} {_bits(richer.method)}".strip()
        note = held.kept or ("says nothing of the label: drop it" if i in self.judge.silent else "")
        share = sum(worth[j] for j in option.tables) or 1.0
        return TableChoice(
            held.name,
            option.method,
            _part(option.served, sizes, i),
            _part(option.training, sizes, i),
            held.nbytes,
            worth[i],
            self.judge.loss(option) * worth[i] / share,
            more,
            note,
            self._rows(option),
        )

    def _rows(self, option: Option) -> int:
        tables = [self.held[i].table for i in option.tables]
        if isinstance(option.method, Full):
            return sum(table.num_embeddings or 0 for table in tables)
        return sum(store.rows for store in option.method.sizes(tables).stores.values())

    def curve(self) -> list[Point]:
        """Return the least expected loss from the fewest bytes to the full tables, by what is known so far."""
        options, items = self.items()
        losses = [self.judge.loss(option) for option in options]
        smallest = self._smallest(items)
        low = max(1, int(smallest) if math.isfinite(smallest) else least_nbytes(items, len(self.held)))
        high = max(low + 1, sum(table.nbytes for table in self.held), self.budget)
        points = 12 if len(self.held) <= MANY else 4
        curve = []
        for k in range(points):
            size = math.ceil(low * (high / low) ** (k / (points - 1)))
            priced = [
                replace(item, loss=loss + self._price(item.nbytes, size))
                for item, loss in zip(items, losses, strict=True)
            ]
            solution = best(priced, len(self.held), size, near=0.01, seconds=2.0)
            if solution is None:
                continue
            point = Point(solution.nbytes, sum(losses[i] for i in solution.items))
            if not curve or (point.nbytes > curve[-1].nbytes and point.loss < curve[-1].loss):
                curve.append(point)
        return curve


def _alike(a: Option, b: Option) -> bool:
    return kind(a.method) == kind(b.method) and _bits(a.method) == _bits(b.method)


def _bits(method: Method) -> str:
    bits = getattr(method, "bits", None)
    return f"{bits} bits" if isinstance(bits, int) else ""


def _part(size: int, sizes: Mapping[int, int], i: int) -> int:
    """The share of `size` bytes that falls to table i, in proportion to the full tables; shares sum to `size`."""
    whole, before = sum(sizes.values()), 0
    for j, own in sizes.items():
        if j == i:
            return (before + own) * size // whole - before * size // whole
        before += own
    raise KeyError(i)


def _no_codes(option: Option) -> bool:
    return "ProductCodes" not in kind(option.method)


def _no_rank(option: Option) -> bool:
    return "LowRank" not in kind(option.method)


def _no_sharing(option: Option) -> bool:
    return rows_of(option.method) is None and "Graph" not in kind(option.method)


def _bits_alone(option: Option) -> bool:
    return _no_codes(option) and _no_rank(option) and _no_sharing(option)


def _but(used: Option) -> Allowed:
    """Allow all but the options of the same tables and kind, so that their narrow rows or codes are others."""
    return lambda option: option.tables != used.tables or kind(option.method) != kind(used.method)


def _shared_alone(option: Option) -> bool:
    return len(option.tables) > 1 or _bits_alone(option)


def _halves_alone(option: Option) -> bool:
    """Return whether the option is a concatenated quotient and remainder, better than a shared store on some data."""
    method = option.method.of if isinstance(option.method, LowBit) else option.method
    return (isinstance(method, QuotientRemainder) and method.combine == "concat") or _bits_alone(option)
