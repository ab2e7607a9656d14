"""Stochastic gradient descent, with momentum (Sutskever et al. 2013) as torch.optim.SGD has it."""

from torch import Tensor

from embcomp.ops.optimizers.base import FusedOptimizerSettings, Per, Rule


class SGD(Rule):
    """w -= lr * g, where g is the gradient or its momentum."""

    name, number, constants = "sgd", 0, ("momentum",)

    def states(self, settings: FusedOptimizerSettings) -> dict[str, Per]:
        return {"momentum_buffer": "value"} if settings.momentum else {}

    def step(self, rows: Tensor, gradient: Tensor, states: dict[str, Tensor], settings: FusedOptimizerSettings) -> None:
        if settings.momentum:
            kept = states["momentum_buffer"].mul_(settings.momentum).add_(gradient)
            gradient = gradient + settings.momentum * kept if settings.nesterov else kept
        rows -= settings.lr * gradient
