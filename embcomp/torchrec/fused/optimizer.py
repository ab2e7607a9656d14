"""The constants and state of fused tables, as an ordinary optimizer."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from embcomp.holders import holders
from embcomp.ops.optimizers import FusedOptimizerSettings, rule_of
from embcomp.torchrec.fused.integers import IntegerTables
from embcomp.torchrec.fused.tables import FusedTables

Trained = FusedTables | IntegerTables
"""The kinds of tables that `fuse_` trains inside the backward pass."""


class FusedOptimizer(torch.optim.Optimizer):
    """The state and constants of the fused tables of a model, as an ordinary optimizer.

    Use it like any optimizer: `zero_grad()` before and `step()` after each backward pass, a scheduler, or
    `param_groups[0]["lr"]` set by hand (one group for each call of `fuse_`, with `weight_decay`, `eps`, `betas` and
    `momentum` if the optimizer has them). Both calls pass changed constants on; the rows themselves are updated by the
    backward pass. `state_dict` and `load_state_dict` contain the state by torch.optim's names ("exp_avg").
    """

    def __init__(self, model: nn.Module) -> None:
        together: dict[int, list[Trained]] = {}
        for tables in _fused(model):
            together.setdefault(id(tables.settings), []).append(tables)
        if not together:
            raise ValueError("the model has no fused tables: call fuse_ first")
        self.tables = list(together.values())
        groups = [
            {"params": [weight for tables in group for weight in tables.parameters()], **_changeable(group[0])}
            for group in self.tables
        ]
        super().__init__(groups, _changeable(self.tables[0][0]))
        for tables in _fused(model):
            for weight, states in zip(tables.parameters(), tables.states, strict=False):
                if states:
                    self.state[weight] = dict(states)

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Pass changed constants on to the tables."""
        self._pass_on()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """A property that `torch.amp.GradScaler.step` reads; it raises, because there is nothing to unscale here."""
        raise ValueError(
            "fused tables are updated by backward(), and GradScaler.step cannot unscale them: give the scaler to "
            "fuse_(..., grad_scaler=scaler), and call step() of this optimizer itself"
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Pass changed constants on: a scheduler changes them after `step`. There are no gradients to reset."""
        self._pass_on()

    def _pass_on(self) -> None:
        for group, tables in zip(self.param_groups, self.tables, strict=True):
            settings = _settings(tables[0])
            changed = replace(settings, **{name: group[name] for name in rule_of(settings).changeable(settings)})
            if problem := changed.problem():
                raise ValueError(f"a group of the fused optimizer has {problem}")
            if rule_of(changed).states(changed) != rule_of(settings).states(settings):
                raise ValueError("a group of the fused optimizer has momentum=0: it was made with one, and keeps it")
            settings.__dict__.update(vars(changed))
            for each in tables:
                each.follow()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Load a state that `state_dict` returned.

        Raises:
            ValueError: the state is of another optimizer or of other tables.
        """
        mine, saved = (
            {number: {name: list(kept.shape) for name, kept in state.items()} for number, state in states.items()}
            for states in (self.state_dict()["state"], state_dict["state"])
        )
        if mine != saved:
            raise ValueError(f"the state was saved for another optimizer or other tables: {saved}, here {mine}")
        held = {weight: dict(states) for weight, states in self.state.items()}
        groups = [  # states of earlier versions have only the learning rate
            {**_changeable(tables[0]), **group}
            for tables, group in zip(self.tables, state_dict["param_groups"], strict=True)
        ]
        super().load_state_dict({**state_dict, "param_groups": groups})
        for weight, states in held.items():
            for name, state in states.items():
                state.copy_(self.state[weight][name])  # the engine continues to use its own memory
            self.state[weight] = states
        self._pass_on()


def fused_optimizer(model: nn.Module) -> FusedOptimizer:
    """Return the optimizer of a model's fused tables (see `FusedOptimizer`). Raise ValueError if there are none."""
    return FusedOptimizer(model)


def _fused(model: nn.Module) -> Iterator[Trained]:
    modules = [holder.module for holder in holders(model, opened=lambda holder: holder.form != "fused")]
    return (module for module in modules if isinstance(module, Trained) and module.settings is not None)


def _settings(tables: Trained) -> FusedOptimizerSettings:
    assert tables.settings is not None
    return tables.settings


def _changeable(tables: Trained) -> dict[str, Any]:
    settings = _settings(tables)
    return rule_of(settings).changeable(settings)
