"""The plans of a run's method, each made once: those by which it was sized are those that its models are built from."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from embcomp.methods import Method, Table
from embcomp.methods.base import FLOAT_BYTES, Plan

MOST = 2**26
"""The bytes of maps and of what combiners learn above which a plan is not kept: those of all runs are held at once."""


@dataclass(frozen=True)
class _Made:
    plan: Plan
    before: Tensor  # the state of random numbers, of which a plan may draw what its combiners begin with
    after: Tensor


class Plans:
    """The plans of one method for given tables and random numbers; models get copies, because they train them."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self._made: dict[tuple[tuple[Table, ...], str], _Made] = {}

    def plan(self, method: Method, tables: Sequence[Table], group: str = "shared") -> Plan:
        """Return the plan that `method.plan` returns, and leave random numbers as it leaves them."""
        made = self._made.get((tuple(tables), group))
        same = method is self.method or method == self.method
        if made is None or not same or not torch.equal(made.before, torch.get_rng_state()):
            return method.plan(tables, group)
        torch.set_rng_state(made.after)
        return copy.deepcopy(made.plan)

    def make(self, groups: Sequence[Sequence[Table]], seed: int) -> list[Plan]:
        """Return the method's plan for each group of tables, and keep those that are not large.

        What they draw is drawn as a model of this seed does. Random numbers outside stay as they were.
        """
        plans = []
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for number, tables in enumerate(groups):
                group = f"shared_{number}" if number and self.method.shares_store else "shared"
                before = torch.get_rng_state()
                plan = self.method.plan(tables, group)
                if plan.sizes.maps + plan.sizes.learned * FLOAT_BYTES <= MOST:
                    self._made[tuple(tables), group] = _Made(plan, before, torch.get_rng_state())
                plans.append(plan)
        return plans

    def kept(self, methods: Mapping[str, Method]) -> dict[str, Method]:
        """Return the methods by pattern of names as ones whose plans are those that are kept."""
        kept: dict[int, Method] = {}  # one for several names plans their tables together
        for method in methods.values():
            kept[id(method)] = (_KeptTogether if method.shares_store else _Kept)(of=method, plans=self)
        return {name: kept[id(method)] for name, method in methods.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Kept(Method, registered=False):
    of: Method
    plans: Plans = dataclasses.field(repr=False)

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        return self.plans.plan(self.of, tables, group)


@dataclass(frozen=True, kw_only=True, eq=False)
class _KeptTogether(_Kept, registered=False):
    shares_store: ClassVar[bool] = True
