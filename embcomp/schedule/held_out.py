"""The use of held-out data by searches of `embcomp.Schedule`: parameters that are trained on it in turns."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from embcomp.schedule.stages import Site, TableStages


class HeldOutTurns:
    """The parameters that are trained on held-out data, in turns with the rest of the model on its own data.

    Args:
        tables: the tables in training, with their stages.
        optimizer: the optimizer of the model.
        validate: the loss on a held-out batch, by its number; None for none, and then nothing is trained in turns.

    Raises:
        ValueError: the optimizer does not train such a parameter.
    """

    def __init__(
        self,
        tables: Sequence[tuple[Site, TableStages]],
        optimizer: torch.optim.Optimizer | None,
        validate: Callable[[int], Tensor] | None,
    ) -> None:
        self._optimizer, self._validate = optimizer, validate
        self._stages: list[TableStages] = []
        self._searched: list[nn.Parameter] = []
        known = {id(p) for group in (optimizer.param_groups if optimizer else ()) for p in group["params"]}
        for site, stages in tables if validate is not None else ():
            if not (searched := [parameter for parameter in stages.held_out() if parameter.requires_grad]):
                continue
            if not {id(parameter) for parameter in searched} <= known:
                raise ValueError(
                    f"table {site.name!r}: validate= trains what it searches on held-out data, but the optimizer of "
                    "the Schedule does not hold it; give the optimizer of all parameters, or leave validate out"
                )
            self._stages.append(stages)
            self._searched += searched

    def hold(self, held: bool) -> None:
        """Hold the parameters while the model is trained on its own data, or let them go."""
        for parameter in self._searched:
            parameter.requires_grad_(not held)

    def take(self, number: int) -> None:
        """Take a step of these parameters alone, down the gradient of the held-out batch of this number."""
        if self._optimizer is None or self._validate is None or not self._searched:
            return
        self.hold(False)
        with torch.enable_grad():
            penalties = [penalty for stages in self._stages if (penalty := stages.penalty()) is not None]
            loss = self._validate(number) + sum(penalties)
        gradients = torch.autograd.grad(loss, self._searched, allow_unused=True)
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        before = [parameter.grad for parameter in parameters]
        for parameter in parameters:  # those without gradients stay
            parameter.grad = None
        for parameter, gradient in zip(self._searched, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
        self.hold(True)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation for a while."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
