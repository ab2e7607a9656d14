"""A byte budget over all tables -> a method and a size for each; and which tables are worth their bytes."""

from embcomp.planner.choice import Choice, TableChoice
from embcomp.planner.choose import choose

__all__ = ["Choice", "TableChoice", "choose"]
