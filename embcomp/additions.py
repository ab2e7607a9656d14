"""Additions to a module or its weight after its class made it: attributes go over to a replacement."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_IN_BACKWARD = ("_in_backward_optimizers", "_optimizer_classes", "_optimizer_kwargs")  # of torch.distributed.optim
_REPLACED = ("forward", "_compiled_call_impl")


def is_hooked(module: nn.Module) -> bool:
    """Return whether the module or one of its own parameters has hooks."""
    weights = [weight for weight in module._parameters.values() if weight is not None]
    hooks = [getattr(module, name) for name in _HOOKS]
    hooks += [
        getattr(weight, name, None) for weight in weights for name in ("_backward_hooks", "_post_accumulate_grad_hooks")
    ]
    return any(hooks)


def check_additions(module: nn.Module, where: str, parts: Collection[str] = ("weight",)) -> None:
    """Raise ValueError for what a replacement of the module would lose.

    Args:
        module: the module.
        where: the beginning of the message, which names the table.
        parts: the names of the parameters and submodules that its class makes.
    """
    if is_parametrized(module):
        raise ValueError(
            f"{where}: its weight is parametrized (weight_norm, say), which would be lost; call "
            f"torch.nn.utils.parametrize.remove_parametrizations(module, {next(iter(module.parametrizations))!r}) "  # pyright: ignore
            "first, or exclude it with embcomp.Full()"
        )
    if is_hooked(module):
        raise ValueError(
            f"{where}: it has hooks, which would be lost; remove them (those of weight_norm or pruning by "
            "remove_weight_norm or prune.remove), and set them again afterwards"
        )
    if "forward" in vars(module):
        raise ValueError(f"{where}: its forward was replaced, which would be lost; exclude it with embcomp.Full()")
    if vars(module).get("_compiled_call_impl") is not None:
        raise ValueError(f"{where}: it was compiled by .compile(), which would be lost; compile it afterwards")
    held = [*module._parameters, *module._buffers, *module._modules]
    if more := [name for name in held if name not in parts]:
        raise ValueError(f"{where}: it also holds {more}, which would be lost; exclude it with embcomp.Full()")
    for weight in module._parameters.values():
        if any(hasattr(weight, name) for name in _IN_BACKWARD):
            raise ValueError(
                f"{where}: apply_optimizer_in_backward was given its weight, and would train the old one; build the "
                "model again, and call it after compress_, or instead of fuse_ and shard"
            )


def attributes_of(module: nn.Module, made: Collection[str]) -> dict[str, Any]:
    """Return the attributes of a module beside those that its class made."""
    return {name: value for name, value in vars(module).items() if name not in made and name not in _REPLACED}


def check_free(attributes: Mapping[str, Any], replacement: nn.Module, where: str) -> None:
    """Raise ValueError if the replacement uses the name of an attribute itself."""
    for name in attributes:
        if hasattr(replacement, name):
            raise ValueError(
                f"{where}: its attribute {name!r} has another meaning in {type(replacement).__name__}; rename it"
            )


def marks_of(weight: Tensor) -> dict[str, Any]:
    """Return the attributes of a weight, by which libraries choose its weight decay, say; without torch.compile's."""
    return {name: value for name, value in vars(weight).items() if not name.startswith("_dynamo")}


class Marks:
    """The marks of weights, to be set on the parameters that replace them."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, dict[str, Any], str]] = {}  # by id of the parameter

    def add(self, weight: Tensor, parameters: Sequence[Tensor], table: str) -> None:
        """Note the marks of a table's weight for its new parameters.

        Raises:
            ValueError: another table with the same rows has another mark.
        """
        marks = marks_of(weight)
        for parameter in parameters:
            _, kept, first = self._kept.setdefault(id(parameter), (parameter, marks, table))
            if name := _differing(kept, marks):
                raise ValueError(
                    f"cannot compress {table!r}: it would share rows with {first!r}, but the attribute {name!r} of "
                    "their weights differs; give them separate instances of the method"
                )

    def put(self) -> None:
        """Set the marks."""
        for parameter, marks, _ in self._kept.values():
            for name, value in marks.items():
                setattr(parameter, name, value)


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first name under which two tables have different values; a missing value is a difference."""
    for name in {**one, **other}:
        if name not in one or name not in other:
            return name
        a, b = one[name], other[name]
        if a is not b and (isinstance(a, Tensor) or isinstance(b, Tensor) or a != b):
            return name
    return None
