"""The state of optimizers by parameter name, so that it fits another sharding and another order of groups.

This is the state of torch's own optimizers, which is made by their first step. Other kinds of optimizers register
themselves in `states_of`.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from embcomp.checkpoints.storage import shapes
from embcomp.holders import Spread, extend, holders, sharded

Described = dict[str, dict[str, Any]]


class OptimizerState:
    """One optimizer and the names of its parameters.

    Attributes:
        fused: True if it updates rows inside the backward pass.

    Args:
        optimizer: the optimizer.
        model: the model that holds its parameters.
        prefix: the path in the model below which the optimizer names its parameters, if it names them itself.

    Raises:
        ValueError: it trains a parameter that the model does not have.
    """

    fused = False

    def __init__(self, optimizer: Any, model: nn.Module, prefix: str = "") -> None:
        self.optimizer = optimizer
        self.names = self._names(model, prefix)

    def _names(self, model: nn.Module, prefix: str) -> dict[Any, str]:
        """The name of each parameter."""
        known = {parameter: name for name, parameter in model.named_parameters()}
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for parameter in trained:
            if parameter not in known:
                raise ValueError(
                    f"{type(self.optimizer).__name__} trains a parameter of shape {list(parameter.shape)} that the "
                    "model does not have: give the checkpoints a module that holds all parameters"
                )
        return {parameter: known[parameter] for parameter in trained}

    def described(self, loading: bool = False) -> Described:
        """Return for each parameter the kind and settings of its optimizer, and the shapes of its state by name.

        With `loading` the shapes are None if the state is made to fit any shapes.
        """
        described: Described = {}
        for group in self.optimizer.param_groups:
            settings = {name: _plain(value) for name, value in group.items() if name != "params"}
            settings = {name: value for name, value in settings.items() if value is not _NOT_PLAIN}
            for parameter in group["params"]:
                states = None
                if not loading or self._fixed:
                    held_shapes = shapes({name: v for name, v in self._state(parameter).items() if v is not None})
                    states = {name: list(shape[1]) if shape else None for name, shape in sorted(held_shapes.items())}
                described[self.names[parameter]] = {"kind": self._kind, "settings": settings, "states": states}
        return described

    def tensors(self) -> dict[str, Any]:
        """Return the current state, from "<parameter>.<state>" to tensor.

        Raises:
            ValueError: a state is not a tensor.
        """
        tensors: dict[str, Any] = {}
        for parameter, name in self.names.items():
            for key, value in self._state(parameter).items():
                if value is not None:
                    if not isinstance(value, Tensor | ShardedTensor):
                        raise ValueError(
                            f"{self._kind} keeps {key!r} of {name} as a {type(value).__name__}: only tensors are saved"
                        )
                    tensors[f"{name}.{key}"] = value
        return tensors

    def prepare(self) -> None:
        """Make the state, if it is to be loaded in place."""

    def targets(self, saved: Described, shapes: Mapping[str, tuple[torch.dtype, torch.Size]]) -> dict[str, Any]:
        """Return the tensors to load into."""
        targets: dict[str, Any] = {}
        for parameter, name in self.names.items():
            for key in saved[name]["states"]:
                dtype, size = shapes[f"{name}.{key}"]
                if size == parameter.shape and parameter.dim():
                    targets[f"{name}.{key}"] = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
                else:
                    device = parameter.device if size else "cpu"  # counts of steps stay on the CPU
                    targets[f"{name}.{key}"] = torch.empty(size, dtype=dtype, device=device)
        return targets

    def load(self, saved: Described, tensors: Mapping[str, Any]) -> None:
        """Load settings and state, after `tensors` (those of `targets`) were filled."""
        settings = self._group_settings(saved)
        order = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state = {
            number: {key: tensors[f"{self.names[parameter]}.{key}"] for key in saved[self.names[parameter]]["states"]}
            for number, parameter in enumerate(order)
        }
        groups = [
            {**group, **values}
            for group, values in zip(self.optimizer.state_dict()["param_groups"], settings, strict=True)
        ]
        held = {number: values for number, values in state.items() if values}
        self.optimizer.load_state_dict({"state": held, "param_groups": groups})

    def _group_settings(self, saved: Described) -> list[dict[str, Any]]:
        """The saved settings of each group."""
        return [self._settings(group, saved) for group in self.optimizer.param_groups]

    def _settings(self, group: Mapping[str, Any], saved: Described) -> dict[str, Any]:
        """The saved settings of a group, each converted to the type that it has here."""
        settings: dict[str, Any] = {}
        if not group["params"]:
            return settings
        for name, value in saved[self.names[group["params"][0]]]["settings"].items():
            here = group.get(name)
            if isinstance(here, Tensor):
                settings[name] = torch.full_like(here, value)
            else:
                settings[name] = tuple(value) if isinstance(value, list) and not isinstance(here, list) else value
        return settings

    def _state(self, parameter: Any) -> Mapping[str, Any]:
        return self.optimizer.state.get(parameter, {})

    @property
    def _fixed(self) -> bool:
        """True if the shapes of the state exist already, and must fit those that are loaded."""
        return False

    @property
    def _kind(self) -> str:
        return type(getattr(self.optimizer, "_optimizer", self.optimizer)).__name__


class InPlaceState(OptimizerState):
    """The state of an optimizer that continues to use its own tensors, which are therefore loaded in place."""

    def targets(self, saved: Described, shapes: Mapping[str, tuple[torch.dtype, torch.Size]]) -> dict[str, Any]:
        return self.tensors()

    def load(self, saved: Described, tensors: Mapping[str, Any]) -> None:
        for group, values in zip(self.optimizer.param_groups, self._group_settings(saved), strict=True):
            group.update(values)

    @property
    def _fixed(self) -> bool:
        return True


@singledispatch
def states_of(optimizer: Any, model: nn.Module, prefix: str = "") -> list[OptimizerState]:
    """Return the single optimizers of an optimizer. Each kind of optimizer registers its own.

    Args:
        optimizer: the optimizer.
        model: the model that holds its parameters.
        prefix: the path in the model below which the optimizer names its parameters, if it names them itself.
    """
    return [OptimizerState(optimizer, model, prefix)]


def optimizer_states(optimizers: Sequence[Any], model: nn.Module) -> list[OptimizerState]:
    """Return all single optimizers: the parts of combined ones, and the fused ones of a sharded model.

    Raises:
        ValueError: the fused optimizer of a sharded part of the model cannot be found.
    """
    own = [holder.optimizer for holder in holders(model) if isinstance(holder, Spread) and holder.paths[0] == ""]
    states: dict[int, OptimizerState] = {}
    for optimizer in (*(optimizer for optimizer in own if optimizer is not None), *optimizers):
        extend(type(optimizer))
        states |= {id(state.optimizer): state for state in states_of(optimizer, model)}
    shards = sharded(model)
    if shards and not any(state.fused for state in states.values()):
        raise ValueError(
            f"{shards[0].paths[0]!r} is sharded, and the state of its optimizer would be lost: give the checkpoints "
            "the DistributedModelParallel itself, as shard() returned it"
        )
    return list(states.values())


def compare(saved: Described, here: Described) -> list[str]:
    """List the differences, a line for each parameter."""
    lines = []
    for name in sorted({*saved, *here}):
        if name not in here:
            lines.append(f"{name} is trained by {saved[name]['kind']} in the checkpoint, and by no optimizer here")
        elif name not in saved:
            lines.append(f"{name} is trained by {here[name]['kind']} here, and by no optimizer in the checkpoint")
        elif saved[name]["kind"] != here[name]["kind"]:
            lines.append(f"{name} is trained by {saved[name]['kind']} in the checkpoint, by {here[name]['kind']} here")
        elif here[name]["states"] not in (None, saved[name]["states"]):
            lines.append(f"{name} has the state {saved[name]['states']} in the checkpoint, {here[name]['states']} here")
    return lines


_NOT_PLAIN = object()


def _plain(value: Any) -> Any:
    """Convert a setting to a JSON value, or return _NOT_PLAIN."""
    numpy = sys.modules.get("numpy")
    if (isinstance(value, Tensor) and value.numel() == 1) or (numpy and isinstance(value, numpy.generic)):
        return value.item()
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        return _NOT_PLAIN if any(item is _NOT_PLAIN for item in items) else items
    return value if value is None or isinstance(value, bool | int | float | str) else _NOT_PLAIN
