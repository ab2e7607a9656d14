"""A method that applies another method to each table, with which runs train the choice of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from embcomp.methods import Method, Table
from embcomp.methods.base import Plan


@dataclass(frozen=True, kw_only=True, eq=False)
class ByTable(Method, registered=False):
    """A method for each table; tables with one instance are planned together.

    Args:
        methods: the method of each table, by name.
    """

    shares_store: ClassVar[bool] = True  # so that all tables are planned at once

    methods: Mapping[str, Method]

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        together: dict[int, list[Table]] = {}
        for table in tables:
            together.setdefault(id(self.methods[table.name]), []).append(table)
        stores, plans = {}, {}
        for number, members in enumerate(together.values()):
            plan = self.methods[members[0].name].plan(members, f"{group}_{number}")
            stores |= plan.stores
            plans |= {table_plan.table.name: table_plan for table_plan in plan.tables}
        return Plan(stores, [plans[table.name] for table in tables])
