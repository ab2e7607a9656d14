"""The weights of tables that are trained inside the backward pass, and how they are frozen."""

from typing import Any

import torch
from torch import Tensor, nn


class FusedWeight(nn.Parameter):
    """The rows of a table that its own engine trains: a parameter outside of autograd.

    `requires_grad` reads False, so that no other optimizer takes the rows. Setting it to False, or
    `requires_grad_(False)` of the parameter or a module around it, freezes them; True lets the engine train them again.
    """

    frozen: bool

    def __new__(cls, data: Tensor, requires_grad: bool = False) -> "FusedWeight":
        weight = super().__new__(cls, data, requires_grad=False)
        weight.frozen = False
        return weight

    @property
    def requires_grad(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return False

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.frozen = not value

    def requires_grad_(self, mode: bool = True) -> "FusedWeight":
        self.requires_grad = mode
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "FusedWeight":
        return _rebuilt(super().__deepcopy__(memo), self.frozen)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the class, too: torch's own way makes a plain parameter, which cannot be frozen so."""
        return _rebuilt, (self.detach(), self.frozen)


def _rebuilt(data: Tensor, frozen: bool) -> FusedWeight:
    weight = data if isinstance(data, FusedWeight) else FusedWeight(data)
    weight.frozen = frozen
    return weight


torch.serialization.add_safe_globals([_rebuilt])  # `torch.load` of parameters takes known classes alone


def all_frozen(rows: nn.ModuleDict, *trained: Tensor | None) -> bool:
    """Return whether the tables of one engine are frozen.

    Args:
        rows: the modules that hold the weights, by table.
        trained: other tensors whose gradients come from the engine, such as weights of ids.

    Raises:
        RuntimeError: some tables are frozen and others are not, or all are and the rest is not.
    """
    frozen = [name for name, row in rows.items() if getattr(row.weight, "frozen", False)]
    if not frozen:
        return False
    if len(frozen) < len(rows):
        raise RuntimeError(
            f"tables {frozen}: frozen, in one collection with trained tables; freeze all of {list(rows)}, or give the "
            "frozen ones a collection of their own before fuse_"
        )
    if any(each is not None and each.requires_grad for each in trained):
        raise RuntimeError(
            f"tables {frozen}: frozen, but the weights of ids or the steps that they are read with are trained; "
            "detach those, or do not freeze the tables"
        )
    return True
