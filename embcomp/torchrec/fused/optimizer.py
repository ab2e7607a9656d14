"""The learning rates and state of fused tables, as an ordinary optimizer."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from embcomp.holders import holders
from embcomp.torchrec.fused.integers import IntegerTables
from embcomp.torchrec.fused.tables import FusedTables

Trained = FusedTables | IntegerTables
"""The kinds of tables that `fuse_` trains inside the backward pass."""


class FusedOptimizer(torch.optim.Optimizer):
    """The state and learning rate of the fused tables of a model, as an ordinary optimizer.

    Use it like any optimizer: `zero_grad()` before and `step()` after each backward pass, a scheduler, or
    `param_groups[0]["lr"]` set by hand (one group for each call of `fuse_`). Both calls pass the learning rate on; the
    rows themselves are updated by the backward pass. `state_dict` and `load_state_dict` contain the sums of squared
    gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        together: dict[int, list[Trained]] = {}
        for tables in _fused(model):
            together.setdefault(id(tables.settings), []).append(tables)
        if not together:
            raise ValueError("the model has no fused tables: call fuse_ first")
        self.tables = list(together.values())
        groups = [
            {"params": [weight for tables in group for weight in tables.parameters()], "lr": _rate(group[0])}
            for group in self.tables
        ]
        super().__init__(groups, {})
        for tables in _fused(model):
            for weight, state in zip(tables.parameters(), tables.states, strict=False):
                self.state[weight] = {"sum": state}

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Pass the learning rates on to the tables."""
        self._pass_on()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """A property that `torch.amp.GradScaler.step` reads; it raises, because there is nothing to unscale here."""
        raise ValueError(
            "fused tables are updated by backward(), and GradScaler.step cannot unscale them: give the scaler to "
            "fuse_(..., grad_scaler=scaler), and call step() of this optimizer itself"
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Pass the learning rates on: a scheduler changes them after `step`. There are no gradients to reset."""
        self._pass_on()

    def _pass_on(self) -> None:
        for settings, group in zip(self.param_groups, self.tables, strict=True):
            for tables in group:
                tables.set_learning_rate(settings["lr"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Load a state that `state_dict` returned.

        Raises:
            ValueError: the state is of another optimizer or of other tables.
        """
        mine, saved = (
            {number: list(state.get("sum", torch.empty(0)).shape) for number, state in states.items()}
            for states in (self.state_dict()["state"], state_dict["state"])
        )
        if mine != saved:
            raise ValueError(f"the state was saved for another optimizer or other tables: sums {saved}, here {mine}")
        held = {weight: state["sum"] for weight, state in self.state.items()}
        super().load_state_dict(state_dict)
        for weight, state in held.items():
            state.copy_(self.state[weight]["sum"])  # the engine goes on using its own memory
            self.state[weight] = {"sum": state}
        self._pass_on()


def fused_optimizer(model: nn.Module) -> FusedOptimizer:
    """Return the optimizer of a model's fused tables (see `FusedOptimizer`). Raise ValueError if there are none."""
    return FusedOptimizer(model)


def _fused(model: nn.Module) -> Iterator[Trained]:
    found = [holder.module for holder in holders(model, opened=lambda holder: holder.form != "fused")]
    return (module for module in found if isinstance(module, Trained) and module.settings is not None)


def _rate(tables: Trained) -> float:
    assert tables.settings is not None
    return tables.settings.lr
