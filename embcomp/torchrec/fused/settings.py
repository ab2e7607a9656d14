"""The settings of the optimizer that runs inside the backward pass."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torchrec.optim import LAMB, PartialRowWiseAdam, PartialRowWiseLAMB, RowWiseAdagrad

from embcomp.ops.optimizers import FusedOptimizerSettings


@dataclass(frozen=True)
class _Kind:
    """An optimizer that can be fused: its rule, the settings that it takes with their defaults, and those it fixes."""

    rule: str
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)


_MOMENTS = {"betas": (0.9, 0.999), "eps": 1e-8}
_KINDS: dict[type[torch.optim.Optimizer], _Kind] = {  # the defaults are those of torch and torchrec
    torch.optim.SGD: _Kind("sgd", {"lr": 1e-3, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}),
    torch.optim.Adagrad: _Kind("adagrad", {"lr": 1e-2, "eps": 1e-10, "weight_decay": 0.0}),
    RowWiseAdagrad: _Kind("rowwise_adagrad", {"lr": 1e-2, "eps": 1e-10, "weight_decay": 0.0}),
    torch.optim.Adam: _Kind("adam", {"lr": 1e-3, **_MOMENTS, "weight_decay": 0.0}),
    torch.optim.AdamW: _Kind("adam", {"lr": 1e-3, **_MOMENTS, "weight_decay": 1e-2}, {"decoupled": True}),
    PartialRowWiseAdam: _Kind("partial_rowwise_adam", {"lr": 1e-2, **_MOMENTS, "weight_decay": 0.0}),
    LAMB: _Kind("lamb", {"lr": 1e-2, **_MOMENTS, "weight_decay": 0.0}),
    PartialRowWiseLAMB: _Kind("partial_rowwise_lamb", {"lr": 1e-2, **_MOMENTS, "weight_decay": 0.0}),
}


def optimizer_settings(
    optimizer: type[torch.optim.Optimizer],
    kwargs: Mapping[str, Any] | None,
    verb: str,
    clip_grad_value: float | None = None,
    clip_grad_norm: float | None = None,
) -> FusedOptimizerSettings:
    """Return the settings of a fused optimizer from those of the ordinary one, with its defaults.

    Raises:
        ValueError: the optimizer cannot be fused, a setting is unknown, or a value is impossible.
    """
    if isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(
            f"cannot {verb} an object of {type(optimizer).__name__}: give the class, and `optimizer_kwargs`"
        )
    if optimizer not in _KINDS:
        raise ValueError(f"cannot {verb} {optimizer!r}: choose one of {[kind.__name__ for kind in _KINDS]}")
    if not isinstance(kwargs, Mapping | None):
        raise ValueError(f"cannot {verb} {optimizer.__name__} with {kwargs!r}: give its settings as a dictionary")
    kind, given = _KINDS[optimizer], dict(kwargs or {})
    known = {**kind.defaults, "lazy": True}
    if unknown := sorted(given.keys() - known.keys()):
        raise ValueError(f"cannot {verb} {optimizer.__name__} with {unknown}: it takes {', '.join(sorted(known))}")
    clips: dict[str, Any] = {"clip_grad_value": clip_grad_value, "clip_grad_norm": clip_grad_norm}
    clips = {name: math.inf if most is None else most for name, most in clips.items()}
    settings = FusedOptimizerSettings(kind.rule, **{**known, **given}, **kind.fixed, **clips)
    if problem := settings.problem():
        raise ValueError(f"cannot {verb} {optimizer.__name__} with {problem}")
    settings.betas = (settings.betas[0], settings.betas[1])
    return settings
