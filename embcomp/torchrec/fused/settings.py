"""The settings of the optimizer that runs inside the backward pass."""

from collections.abc import Mapping
from typing import Any

import torch
from torchrec.optim import RowWiseAdagrad

from embcomp.ops.tables import FusedOptimizerSettings, OptimizerName

_NAMES: dict[type[torch.optim.Optimizer], OptimizerName] = {
    torch.optim.SGD: "sgd",
    torch.optim.Adagrad: "adagrad",
    RowWiseAdagrad: "rowwise_adagrad",
}


def optimizer_settings(
    optimizer: type[torch.optim.Optimizer], kwargs: Mapping[str, Any] | None, verb: str
) -> FusedOptimizerSettings:
    """Return the settings of a fused optimizer from those of the ordinary one, with its defaults.

    Raises:
        ValueError: the optimizer cannot be fused, a setting is unknown, or a value is negative or not finite.
    """
    if optimizer not in _NAMES:
        raise ValueError(f"cannot {verb} {optimizer!r}: choose one of {[kind.__name__ for kind in _NAMES]}")
    name, given = _NAMES[optimizer], dict(kwargs or {})
    defaults = {"sgd": (1e-3, 0.0), "adagrad": (1e-2, 1e-10), "rowwise_adagrad": (1e-2, 1e-10)}  # as in torch, torchrec
    lr, eps = defaults[name]
    settings = FusedOptimizerSettings(name, given.pop("lr", lr), given.pop("eps", eps), given.pop("weight_decay", 0.0))
    if given:
        raise ValueError(f"cannot {verb} {optimizer.__name__} with {sorted(given)}: only lr, eps and weight_decay")
    for key in ("lr", "eps", "weight_decay"):
        if not 0 <= getattr(settings, key) < float("inf"):
            raise ValueError(
                f"cannot {verb} {optimizer.__name__} with {key}={getattr(settings, key)}: it must be at least 0"
            )
    return settings
