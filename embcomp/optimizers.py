"""Optimizers, schedulers and averages that a model keeps, and which would go on using the replaced tables."""

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.swa_utils import AveragedModel

from embcomp.holders import join
from embcomp.references import MOST, contents

_DEPTH = 6  # levels of attributes and containers: the model's own, its trainer's, the trainer's schedulers, ...

Owner = Callable[[Tensor], str | None]
"""A function from a tensor to the path of the table whose weight it is, or None."""


@dataclass(frozen=True)
class HeldOptimizer:
    """An optimizer that the model keeps, made before the swap, which has not stepped on its tables."""

    path: str
    optimizer: Optimizer

    def plan(self, new: Mapping[int, Sequence[nn.Parameter]]) -> list[list[Any]]:
        """The parameters of each group after the swap.

        Args:
            new: the parameters that replace a weight, by the weight's `id`.

        Raises:
            ValueError: groups with different settings would get the same rows.
        """
        groups, homes = [], {}
        for number, group in enumerate(self.optimizer.param_groups):
            parameters = [parameter for weight in group["params"] for parameter in new.get(id(weight), [weight])]
            groups.append(list({id(parameter): parameter for parameter in parameters}.values()))
            for parameter in groups[-1]:
                if homes.setdefault(id(parameter), number) != number:
                    raise ValueError(
                        f"cannot compress: {self.path!r} ({type(self.optimizer).__name__}) trains tables that would "
                        "share rows in several groups; set it to None, and make it again after compress_"
                    )
        return groups

    def put(self, groups: Sequence[list[Any]]) -> None:
        for group, parameters in zip(self.optimizer.param_groups, groups, strict=True):
            group["params"] = parameters


def held_optimizers(model: nn.Module, owner: Owner) -> list[HeldOptimizer]:
    """Find the optimizers that hold weights of tables to be swapped and can be given the new ones.

    Optimizers, schedulers and averages (EMA, SWA) are searched for in the attributes of the model's modules, also
    inside containers, functions and plain objects.

    Raises:
        ValueError: there is an average of a table, or an optimizer that has stepped on a table or is not one of torch's
            own.
    """
    optimizers: dict[int, HeldOptimizer] = {}
    for path, module in model.named_modules():
        if isinstance(module, AveragedModel) and path and _holds_tables(module):
            raise _averaged(path, module)
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            for item in _reachable(value):
                where = join(path, name)
                _check_no_average(where, item, owner)
                if isinstance(item, Optimizer) and id(item) not in optimizers:
                    weights = [w for group in item.param_groups for w in group["params"] if owner(w)]
                    if weights:
                        _check_exchangeable(where, item, weights, owner)
                        optimizers[id(item)] = HeldOptimizer(where, item)
    return list(optimizers.values())


def _check_exchangeable(path: str, optimizer: Optimizer, weights: Sequence[Tensor], owner: Owner) -> None:
    kind = type(optimizer)
    own = kind.__module__.startswith("torch.optim.") and kind is not LBFGS
    named = any("param_names" in group for group in optimizer.param_groups)
    if own and not named and not any(optimizer.state.get(weight) for weight in weights):
        return
    why = "has trained it" if own and not named else "keeps more of it than its parameters"
    raise ValueError(
        f"cannot compress {owner(weights[0])!r}: {path!r} ({kind.__name__}) {why} and would continue to train the old "
        "one; set it to None, and make it again after compress_"
    )


def _check_no_average(path: str, item: Any, owner: Owner) -> None:
    if isinstance(item, AveragedModel) and _holds_tables(item):
        raise _averaged(path, item)
    target = item() if isinstance(item, weakref.ref) else None
    if isinstance(target, Tensor) and owner(target):
        raise ValueError(
            f"cannot compress {owner(target)!r}: {path!r} keeps track of its weight (an average, say), and would "
            "continue with the old one; set it to None, and make it again after compress_"
        )


def _averaged(path: str, module: nn.Module) -> ValueError:
    return ValueError(
        f"cannot compress: {path!r} ({type(module).__name__}) averages a copy of the model with the tables of before; "
        "remove it, and make it again after compress_"
    )


def _holds_tables(module: nn.Module) -> bool:
    return any(isinstance(submodule, nn.Embedding | nn.EmbeddingBag) for submodule in module.modules())


def _reachable(value: Any) -> Iterator[Any]:
    """Yield the objects that an attribute leads to, nearest first; modules are not opened."""
    seen: dict[int, Any] = {}
    level = [value]
    for _ in range(_DEPTH):
        below: list[Any] = []
        for item in level:
            if id(item) in seen:
                continue
            seen[id(item)] = item
            yield item
            if len(seen) + len(below) < MOST:
                below += _inside(item)
        level = below


def _inside(item: Any) -> Collection[Any]:
    if isinstance(item, Tensor | nn.Module | type | ModuleType | Optimizer) or type(item) in weakref.ProxyTypes:
        return ()
    return contents(item) or list(getattr(item, "__dict__", {}).values())


def row_states(optimizer: Optimizer | None, rows: Tensor) -> list[Tensor]:
    """Return the tensors of the optimizer state that have one row for each row."""
    state = {} if optimizer is None else optimizer.state.get(rows, {})
    return [kept for kept in state.values() if isinstance(kept, Tensor) and kept.shape[:1] == rows.shape[:1]]
