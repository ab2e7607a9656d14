"""The lists of (weights, coefficient) by which models penalise their weights, as in DeepCTR-Torch."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor, nn

from embcomp.holders import join

Attribute = tuple[nn.Module, str]


def penalties(model: nn.Module, owns: Callable[[Tensor], Any]) -> dict[Attribute, str]:
    """The attributes that are such lists and contain the weight of a table, with their paths.

    An entry is (weights, coefficient, ...). The weights are a parameter, or a list of parameters or of (name,
    parameter) pairs; the coefficients are numbers.
    """
    attributes = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, list) and value and all(_is_penalty(item) for item in value):
                weights = [weight for item in value for _, weight in _named(item[0])]
                if any(owns(weight) for weight in weights):
                    attributes[module, name] = join(path, name)
    return attributes


def put_rows(attribute: Attribute, new: Mapping[int, Sequence[nn.Parameter]]) -> None:
    """Replace the weights of tables in a list by the parameters that replaced them, so that these are penalised."""
    module, name = attribute
    items = getattr(module, name)
    items[:] = [type(item)([_replaced(item[0], new), *item[1:]]) for item in items]


def _is_penalty(item: Any) -> bool:
    if type(item) not in (tuple, list) or len(item) < 2:
        return False
    numbers = all(isinstance(number, Real) and not isinstance(number, bool) for number in item[1:])
    listed = type(item[0]) is list or isinstance(item[0], Tensor)
    return numbers and listed and all(isinstance(weight, nn.Parameter) for _, weight in _named(item[0]))


def _named(weights: Any) -> list[tuple[Any, Any]]:
    """The pair (name or None, parameter) of each weight; empty for anything else."""
    if isinstance(weights, Tensor):
        return [(None, weights)]
    if type(weights) is not list:
        return []
    return [pair if type(pair) is tuple and len(pair) == 2 else (None, pair) for pair in weights]


def _replaced(weights: Any, new: Mapping[int, Sequence[nn.Parameter]]) -> Any:
    if isinstance(weights, Tensor) and id(weights) not in new:
        return weights
    parts: dict[int, Any] = {}
    for name, weight in _named(weights):
        fresh = new.get(id(weight), [weight])
        for number, parameter in enumerate(fresh):
            label = name if len(fresh) == 1 else f"{name}.{number}"
            parts.setdefault(id(parameter), parameter if name is None else (label, parameter))
    return list(parts.values())
