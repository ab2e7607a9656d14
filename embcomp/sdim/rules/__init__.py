"""The rules of SDIM, by the names that its constructor takes."""

from embcomp.sdim.rules.base import CollisionRule, Rule
from embcomp.sdim.rules.kernel import Kernel
from embcomp.sdim.rules.l2 import L2
from embcomp.sdim.rules.mean import Mean

RULES: dict[str, type[Rule]] = {"l2": L2, "mean": Mean, "kernel": Kernel}

__all__ = ["RULES", "CollisionRule", "Rule"]
