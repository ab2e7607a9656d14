"""The state of torchrec's optimizers and of fused tables, by parameter name.

torchrec's keyed optimizers (the fused ones of a DistributedModelParallel, and wrappers) know the names themselves. Both
kinds of fused optimizers use the same names, so that a checkpoint of one fits the other.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchrec.optim.fused import FusedOptimizer as ShardedFusedOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer

from embcomp.checkpoints.optimizer_state import Described, InPlaceState, OptimizerState, states_of
from embcomp.holders import join
from embcomp.torchrec.fused.optimizer import FusedOptimizer


class KeyedState(InPlaceState):
    """The state of one of torchrec's keyed optimizers."""

    def _names(self, model: nn.Module, prefix: str) -> dict[Any, str]:
        return {parameter: join(prefix, name) for name, parameter in self.optimizer.params.items()}

    def prepare(self) -> None:
        if not self._fixed:
            self.optimizer.init_state()
            self.optimizer.zero_grad()

    def load(self, saved: Described, tensors: Mapping[str, Any]) -> None:
        super().load(saved, tensors)
        self.optimizer.post_load_state_dict()

    @property
    def _fixed(self) -> bool:
        return all(parameter in self.optimizer.state for parameter in self.names)


class FusedState(InPlaceState):
    """The state of the tables that `fuse_` trains."""

    fused = True

    def load(self, saved: Described, tensors: Mapping[str, Any]) -> None:
        super().load(saved, tensors)
        self.optimizer.zero_grad()  # passes the settings on to the tables

    def _state(self, parameter: Any) -> Mapping[str, Any]:
        return {_common_name(name): value for name, value in super()._state(parameter).items()}

    @property
    def _kind(self) -> str:
        return "FusedOptimizer"


class ShardedFusedState(FusedState, KeyedState):
    """The state of the tables of a sharded module."""

    @property
    def _fixed(self) -> bool:
        return True


@states_of.register
def _(optimizer: KeyedOptimizer, model: nn.Module, prefix: str = "") -> list[OptimizerState]:
    return [KeyedState(optimizer, model, prefix)]


@states_of.register
def _(optimizer: CombinedOptimizer, model: nn.Module, prefix: str = "") -> list[OptimizerState]:
    return [state for name, inner in optimizer.optimizers for state in states_of(inner, model, join(prefix, name))]


@states_of.register
def _(optimizer: ShardedFusedOptimizer, model: nn.Module, prefix: str = "") -> list[OptimizerState]:
    return [ShardedFusedState(optimizer, model, prefix)]


@states_of.register
def _(optimizer: FusedOptimizer, model: nn.Module, prefix: str = "") -> list[OptimizerState]:
    return [FusedState(optimizer, model, prefix)]


def _common_name(name: str) -> str:
    """Return the name that torchrec puts after that of the table: the first state is "momentum1"."""
    name = name.rpartition(".")[2]
    return "momentum1" if name in ("sum", "exp_avg", "momentum_buffer") else name
