"""Adagrad (Duchi et al. 2011), with a sum of squares for each value or one for each row."""

from torch import Tensor

from embcomp.ops.optimizers.base import FusedOptimizerSettings, Per, Rule


class Adagrad(Rule):
    """w -= lr * g / (sqrt(sum of g^2) + eps)."""

    name, number, constants = "adagrad", 1, ("eps",)

    def states(self, settings: FusedOptimizerSettings) -> dict[str, Per]:
        return {"sum": "value"}

    def step(self, rows: Tensor, gradient: Tensor, states: dict[str, Tensor], settings: FusedOptimizerSettings) -> None:
        root = states["sum"].add_(gradient.square()).sqrt() + settings.eps
        rows -= settings.lr * gradient / root


class RowWiseAdagrad(Rule):
    """Adagrad with the mean square of a row."""

    name, number, constants = "rowwise_adagrad", 2, ("eps",)

    def states(self, settings: FusedOptimizerSettings) -> dict[str, Per]:
        return {"sum": "row"}

    def step(self, rows: Tensor, gradient: Tensor, states: dict[str, Tensor], settings: FusedOptimizerSettings) -> None:
        root = states["sum"].add_(gradient.square().mean(1)).sqrt() + settings.eps
        rows -= settings.lr * gradient / root.unsqueeze(-1)
