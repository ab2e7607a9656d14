"""The state of optimizers by parameter name, so that it fits another sharding and another order of groups.

There are three kinds: torch's own, whose state is made by their first step; torchrec's keyed optimizers (the fused ones
of a DistributedModelParallel, and wrappers), which know the names themselves; and embcomp's, of tables that one process
has fused. Both kinds of fused optimizers use the same names, so that a checkpoint of one fits the other.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from embcomp.checkpoints.storage import shapes
from embcomp.holders import join

Described = dict[str, dict[str, Any]]

_SHARDED = ("torchrec.distributed.types", "ShardedModule")
_KEYED = ("torchrec.optim.keyed", "KeyedOptimizer")
_FUSED = [("torchrec.optim.fused", "FusedOptimizer"), ("embcomp.torchrec.fused.optimizer", "FusedOptimizer")]


def loaded(module: str, *names: str) -> tuple[type, ...]:
    """Return classes of a module that needs an extra; empty if it was not imported, since no object can be of them."""
    return tuple(getattr(sys.modules[module], name) for name in names) if module in sys.modules else ()


class OptimizerState:
    """One optimizer and the names of its parameters (below `prefix`, if it knows them itself).

    Raises:
        ValueError: it trains a parameter that the model does not have.
    """

    def __init__(self, optimizer: Any, model: nn.Module, prefix: str = "") -> None:
        self.optimizer = optimizer
        self.keyed = isinstance(optimizer, loaded(*_KEYED))
        self.fused = any(isinstance(optimizer, loaded(*kind)) for kind in _FUSED)
        self.in_place = self.keyed or self.fused  # kernels and wrappers continue to use their tensors
        if self.keyed:
            self.names = {parameter: join(prefix, name) for name, parameter in optimizer.params.items()}
        else:
            known = {parameter: name for name, parameter in model.named_parameters()}
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for parameter in trained:
                if parameter not in known:
                    raise ValueError(
                        f"{type(optimizer).__name__} trains a parameter of shape {list(parameter.shape)} that the "
                        "model does not have: give the checkpoints a module that holds all parameters"
                    )
            self.names = {parameter: known[parameter] for parameter in trained}

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
                if not loading or (self.in_place and self._made):
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
        """Make the state of torchrec's optimizers, which is loaded in place."""
        if self.keyed and not self._made:
            self.optimizer.init_state()
            self.optimizer.zero_grad()

    def targets(self, saved: Described, shapes: Mapping[str, tuple[torch.dtype, torch.Size]]) -> dict[str, Any]:
        """Return the tensors to load into: the state itself if it exists, else new tensors of the saved shapes."""
        if self.in_place:
            return self.tensors()
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
        settings = [self._settings(group, saved) for group in self.optimizer.param_groups]
        if self.in_place:  # the tensors are its own
            for group, values in zip(self.optimizer.param_groups, settings, strict=True):
                group.update(values)
            if self.keyed:
                self.optimizer.post_load_state_dict()
            if self.fused:
                self.optimizer.zero_grad()  # passes the learning rates on to the tables
            return
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
        state = self.optimizer.state.get(parameter, {})
        return {_fused_name(name): value for name, value in state.items()} if self.fused else state

    @property
    def _made(self) -> bool:
        return self.fused or all(parameter in self.optimizer.state for parameter in self.names)

    @property
    def _kind(self) -> str:
        if self.fused:
            return "FusedOptimizer"
        return type(getattr(self.optimizer, "_optimizer", self.optimizer)).__name__


def optimizer_states(optimizers: Sequence[Any], model: nn.Module) -> list[OptimizerState]:
    """Return all single optimizers: the parts of combined ones, and the fused ones of a sharded model.

    Raises:
        ValueError: the fused optimizer of a sharded part of the model cannot be found.
    """
    fused = getattr(model, "fused_optimizer", None)
    given = [*([fused] if isinstance(fused, loaded(*_KEYED)) else []), *optimizers]
    leaves = {id(leaf): (leaf, prefix) for optimizer in given for leaf, prefix in _leaves(optimizer)}
    states = [OptimizerState(leaf, model, prefix) for leaf, prefix in leaves.values()]
    sharded = [path for path, module in model.named_modules() if isinstance(module, loaded(*_SHARDED))]
    if sharded and not any(state.fused for state in states):
        raise ValueError(
            f"{sharded[0]!r} is sharded, and the state of its optimizer would be lost: give the checkpoints the "
            "DistributedModelParallel itself, as shard() returned it"
        )
    return states


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


def _fused_name(name: str) -> str:
    """Return the name that torchrec puts after that of the table: the first state is "momentum1"."""
    name = name.rpartition(".")[2]
    return "momentum1" if name in ("sum", "exp_avg", "momentum_buffer") else name


def _leaves(optimizer: Any, prefix: str = "") -> Iterator[tuple[Any, str]]:
    if isinstance(optimizer, loaded(*_KEYED)) and hasattr(optimizer, "optimizers"):  # torchrec's CombinedOptimizer
        for name, inner in optimizer.optimizers:
            yield from _leaves(inner, join(prefix, name))
    else:
        yield optimizer, prefix
