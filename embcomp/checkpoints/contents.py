"""The contents of a checkpoint: the state of a model and its optimizers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from embcomp.checkpoints import optimizer_state, storage
from embcomp.checkpoints.encoders import difference, encoders_of

_SHOWN = 5  # differences that an error lists


class Contents:
    """A model and its optimizers, as this process holds them."""

    def __init__(self, model: nn.Module, optimizers: Sequence[Any]) -> None:
        self.model = storage.unwrapped(model)
        self.optimizers = optimizer_state.optimizer_states(optimizers, self.model)
        self.weights: dict[str, Any] = dict(self.model.state_dict())

    def tensors(self) -> dict[str, Any]:
        """Return the tensors by the names that the engine gives to `{"model": ..., "optimizer": ...}`."""
        tensors = {f"model.{name}": value for name, value in self.weights.items()}
        for optimizer in self.optimizers:
            tensors |= {f"optimizer.{name}": value for name, value in optimizer.tensors().items()}
        return tensors

    def described(self, loading: bool = False) -> dict[str, Any]:
        """Describe encoders and optimizers as JSON values, and the shapes of the weights."""
        return {
            "encoders": encoders_of(self.weights),
            "optimizers": merged(optimizer.described(loading) for optimizer in self.optimizers),
            "shapes": storage.shapes(self.weights),
        }

    def targets(self, saved: Mapping[str, Any], shapes: storage.Shapes) -> dict[str, Any]:
        """Return the tensors to read a checkpoint into. Optimizer state is made if there is none yet."""
        targets: dict[str, Any] = {}
        for name, value in self.weights.items():
            shape = shapes[f"model.{name}"]
            if name.endswith("_extra_state") and isinstance(value, Tensor) and shape is not None:
                value = value.new_empty(shape[1])  # a configuration, say, whose text may be longer than ours
            targets[f"model.{name}"] = value
        of_optimizers = {
            name.removeprefix("optimizer."): shape
            for name, shape in shapes.items()
            if name.startswith("optimizer.") and shape is not None
        }
        for optimizer in self.optimizers:
            optimizer.prepare()
            made = optimizer.targets(saved["optimizers"], of_optimizers)
            targets |= {f"optimizer.{name}": value for name, value in made.items()}
        return targets

    def load(self, saved: Mapping[str, Any], filled: Mapping[str, Any]) -> None:
        """Load the values that were read into `targets`."""
        self.model.load_state_dict({name: filled[f"model.{name}"] for name in self.weights})
        state = {
            name.removeprefix("optimizer."): value for name, value in filled.items() if name.startswith("optimizer.")
        }
        for optimizer in self.optimizers:
            optimizer.load(saved["optimizers"], state)


def merged(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the dictionaries into one."""
    return {name: value for part in parts for name, value in part.items()}


def check_alike(ranks: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if a rank differs from rank 0 in map, configuration, version or position."""
    for rank, facts in enumerate(ranks):
        lines = difference(facts["encoders"], ranks[0]["encoders"], f"rank {rank}", "rank 0", names_count=True)
        for name in ("step", "position", "version"):
            if repr(facts[name]) != repr(ranks[0][name]):  # as text: NaN is like NaN
                lines.append(f"{name}: rank {rank} {facts[name]!r}, rank 0 {ranks[0][name]!r}")
        if lines:
            raise ValueError(f"rank {rank} is not like rank 0: {some(lines)}")


def check_fits(saved: Mapping[str, Any], shapes: storage.Shapes, ranks: Sequence[Mapping[str, Any]]) -> list[str]:
    """List, a line each, how a checkpoint does not fit the model and the optimizers of these ranks."""
    for facts in ranks:
        if lines := difference(saved["encoders"], facts["encoders"], "saved", "here"):
            return lines
    weights = {name.removeprefix("model."): shape for name, shape in shapes.items() if name.startswith("model.")}
    lines = storage.compare(weights, merged(facts["shapes"] for facts in ranks))
    trained = merged(facts["optimizers"] for facts in ranks)
    return lines or (optimizer_state.compare(saved["optimizers"], trained) if trained else [])


def some(lines: Sequence[str]) -> str:
    """Join the first differences."""
    more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return "; ".join(lines[:_SHOWN]) + more
