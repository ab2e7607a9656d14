"""What `fuse_` and `shard` train inside the backward pass: which collections of a model, by which optimizer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim import RowWiseAdagrad

from embcomp.ops.tables import FusedOptimizerSettings, OptimizerName

Collection = EmbeddingBagCollection | EmbeddingCollection

_NAMES: dict[type[torch.optim.Optimizer], OptimizerName] = {
    torch.optim.SGD: "sgd",
    torch.optim.Adagrad: "adagrad",
    RowWiseAdagrad: "rowwise_adagrad",
}


def trained_collections(model: nn.Module, verb: str) -> dict[Collection, list[tuple[nn.Module, str]]]:
    """The trained collections of a model and where each is held (a collection used twice stays one).

    Args:
        model: holds torchrec collections.
        verb: what is to be done, for messages.

    Raises:
        ValueError: tables partly frozen, or a weight that another module holds too.
    """
    places: dict[Any, list[tuple[nn.Module, str]]] = {}
    holders: dict[int, int] = {}
    for parent in model.modules():
        for weight in parent._parameters.values():
            holders[id(weight)] = holders.get(id(weight), 0) + 1
        for name, child in parent._modules.items():
            if type(child) in (EmbeddingBagCollection, EmbeddingCollection):
                places.setdefault(child, []).append((parent, name))
    for collection in list(places):
        weights = dict(collection.named_parameters())
        tied = [name for name, weight in weights.items() if holders[id(weight)] > 1]
        if tied:
            raise ValueError(
                f"cannot {verb} {tied}: another module holds the same weight, and would not see its updates"
            )
        frozen = [name for name, weight in weights.items() if not weight.requires_grad]
        if len(frozen) == len(weights):
            del places[collection]  # nothing to train: it stays as it is
        elif frozen:
            raise ValueError(
                f"cannot {verb} {frozen}: frozen, in one collection with trained tables; give them another"
            )
    return places


def optimizer_settings(
    optimizer: type[torch.optim.Optimizer], kwargs: Mapping[str, Any] | None, verb: str
) -> FusedOptimizerSettings:
    """The settings of a fused optimizer from those of the ordinary one, with its defaults.

    Raises:
        ValueError: an optimizer that cannot be fused, an unknown setting, a value that is negative or not finite.
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
