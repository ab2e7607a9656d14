"""What `fuse_` and `shard` train inside the backward pass: which collections of a model, by which optimizer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchrec.optim import RowWiseAdagrad

from embcomp.holders import Holder, holders
from embcomp.ops.tables import FusedOptimizerSettings, OptimizerName
from embcomp.torchrec.holders import Collection, CollectionHolder
from embcomp.torchrec.integers import IntegerTables

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
    places: dict[Collection, list[tuple[nn.Module, str]]] = {}
    for holder in plain_collections(model):
        where = [path.rpartition(".") for path in holder.paths if path]
        if where:
            parents = {(model.get_submodule(parent), name): None for parent, _, name in where}
            places[holder.module] = list(parents)
    owners: dict[int, int] = {}
    for module in model.modules():
        for weight in module._parameters.values():
            owners[id(weight)] = owners.get(id(weight), 0) + 1
    for collection in list(places):
        weights = dict(collection.named_parameters())
        tied = [name for name, weight in weights.items() if owners[id(weight)] > 1]
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


def plain_collections(model: nn.Module) -> list[CollectionHolder]:
    """The collections of torchrec's own classes in a model, also those that compressed ones are made of."""

    def opened(holder: Holder) -> bool:
        return not isinstance(holder, CollectionHolder) or holder.behaves

    return [holder for holder in holders(model, opened=opened) if isinstance(holder, CollectionHolder)]


def untrained_integers(model: nn.Module) -> list[IntegerTables]:
    """The tables of integers that no `fuse_` has met yet."""
    found = [holder.module for holder in holders(model, opened=lambda holder: holder.form != "fused")]
    return [tables for tables in found if isinstance(tables, IntegerTables) and tables.settings is None]


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
