"""Optimizers of rows: the rule of each in plain torch, what it keeps, and its number in C++."""

from embcomp.ops.optimizers.adagrad import Adagrad, RowWiseAdagrad
from embcomp.ops.optimizers.adam import LAMB, Adam, PartialRowWiseAdam, PartialRowWiseLAMB
from embcomp.ops.optimizers.base import Constants, FusedOptimizerSettings, Per, Rule
from embcomp.ops.optimizers.sgd import SGD

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (SGD(), Adagrad(), RowWiseAdagrad(), Adam(), PartialRowWiseAdam(), LAMB(), PartialRowWiseLAMB())
}
"""The optimizers by the `name` of their settings."""

__all__ = ["RULES", "Constants", "FusedOptimizerSettings", "Per", "Rule", "rule_of"]


def rule_of(settings: FusedOptimizerSettings) -> Rule:
    """Return the rule of an optimizer.

    Example:
        >>> from embcomp.ops.optimizers import FusedOptimizerSettings, rule_of
        >>> adam = FusedOptimizerSettings("adam", lr=1e-3)
        >>> rule_of(adam).states(adam)
        {'exp_avg': 'value', 'exp_avg_sq': 'value', 'row_counter': 'row'}
    """
    return RULES[settings.name]
