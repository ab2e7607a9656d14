"""The interface of an optimizer of rows: its settings, its state, and one step in plain torch."""

import abc
import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

Per = Literal["value", "row"]
"""The size of a state: a number for each value of a table, or for each row."""


@dataclass
class FusedOptimizerSettings:
    """The settings of an optimizer: its name and its constants. Its rule ignores constants that it does not have.

    Attributes:
        name: the name of the optimizer, a key of `RULES`.
        lr: the learning rate, which may change between steps.
        eps: the constant added to the root.
        weight_decay: the weight decay; weight_decay * w is added to the gradient unless `decoupled`.
        betas: the decays of the two moments.
        momentum: the momentum of the gradients, 0 for none.
        nesterov: whether the momentum looks ahead.
        decoupled: whether the weights decay apart from the gradient, w -= lr * weight_decay * w.
        lazy: whether a row moves only in steps that read it, and counts these steps; otherwise all rows move in every
            step, as under a dense gradient.
        clip_grad_value: the largest magnitude of a value in the gradient of a row.
        clip_grad_norm: the largest norm of the gradient of a table.
    """

    name: str
    lr: float
    eps: float = 1e-8
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.0
    nesterov: bool = False
    decoupled: bool = False
    lazy: bool = True
    clip_grad_value: float = math.inf
    clip_grad_norm: float = math.inf

    def problem(self) -> str | None:
        """Return the first impossible setting, "eps=-1: it must be a number, at least 0 ..."; None if none is."""
        for key in ("lr", "eps", "weight_decay", "momentum"):
            if not (_is_number(value := getattr(self, key)) and 0 <= value < math.inf):
                return f"{key}={value!r}: it must be a number, at least 0 and finite"
        two = isinstance(self.betas, Sequence) and len(self.betas) == 2
        if not two or not all(_is_number(beta) and 0 <= beta < 1 for beta in self.betas):
            return f"betas={self.betas!r}: it must be two numbers in [0, 1)"
        for key in ("nesterov", "decoupled", "lazy"):
            if not isinstance(value := getattr(self, key), bool):
                return f"{key}={value!r}: it must be True or False"
        if self.nesterov and not self.momentum:
            return "nesterov=True and momentum=0: it looks ahead along a momentum; set one"
        for key in ("clip_grad_value", "clip_grad_norm"):
            if not (_is_number(value := getattr(self, key)) and value > 0):
                return f"{key}={value!r}: it must be a number, more than 0"
        return None


class Rule(abc.ABC):
    """The rule by which an optimizer moves rows.

    Attributes:
        name: its name in settings.
        number: its number in C++ (`embcomp/native/optimizers.h`).
        constants: the settings that it reads, apart from the learning rate and the weight decay.
        decays_beside: whether its weight decay is always decoupled.
    """

    name: ClassVar[str]
    number: ClassVar[int]
    constants: ClassVar[tuple[str, ...]] = ()
    decays_beside: ClassVar[bool] = False

    @abc.abstractmethod
    def states(self, settings: FusedOptimizerSettings) -> dict[str, Per]:
        """Return its states by torch.optim's or FBGEMM's names, in the order of C++; all are zero at first."""

    @abc.abstractmethod
    def step(self, rows: Tensor, gradient: Tensor, states: dict[str, Tensor], settings: FusedOptimizerSettings) -> None:
        """Make one step of all these rows, in place.

        Args:
            rows: the rows, float32 [n, dim].
            gradient: their gradient, float32 [n, dim], clipped, with weight decay that is not decoupled.
            states: the states by name, [n, dim] or [n], updated in place.
            settings: the constants.
        """

    def decay_beside(self, settings: FusedOptimizerSettings) -> float:
        """Return the weight decay that is apart from the gradient."""
        return settings.weight_decay if settings.decoupled or self.decays_beside else 0.0

    def decay_inside(self, settings: FusedOptimizerSettings) -> float:
        """Return the weight decay that is added to the gradient."""
        return settings.weight_decay - self.decay_beside(settings)

    def changeable(self, settings: FusedOptimizerSettings) -> dict[str, Any]:
        """Return the settings that may change between steps, by torch's names; momentum only if it has a state."""
        names = ("lr", "weight_decay", *self.constants)
        return {name: getattr(settings, name) for name in names if name != "momentum" or settings.momentum}

    def moves_alone(self, settings: FusedOptimizerSettings) -> bool:
        """Return whether a gradient of zero changes rows or their states."""
        return bool(settings.weight_decay or settings.momentum)


class Constants(ctypes.Structure):
    """The settings as a struct of C++."""

    _fields_ = [
        ("rule", ctypes.c_int32), ("nesterov", ctypes.c_int32), ("lazy", ctypes.c_int32), ("states", ctypes.c_int32),
        *((name, ctypes.c_double) for name in ("lr", "eps", "beta1", "beta2", "momentum", "l2", "decay", "scale",
                                               "most")),
    ]  # fmt: skip

    @classmethod
    def of(cls, rule: Rule, settings: FusedOptimizerSettings, scale: float) -> "Constants":
        return cls(
            rule=rule.number, nesterov=settings.nesterov, lazy=settings.lazy, states=len(rule.states(settings)),
            lr=settings.lr, eps=settings.eps, beta1=settings.betas[0], beta2=settings.betas[1],
            momentum=settings.momentum, l2=rule.decay_inside(settings), decay=rule.decay_beside(settings), scale=scale,
            most=settings.clip_grad_value,
        )  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
