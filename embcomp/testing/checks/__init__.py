"""The contract (docs/contract.md) as functions of an example of a method."""

from embcomp.testing.checks import bags, budgets, gradients, ids, states  # noqa: F401 (they join the list)
from embcomp.testing.checks.check import CHECKS

__all__ = ["CHECKS"]
