"""Optimizers of a run: one over everything, or one over the model and a fused one inside its tables."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer
from torchrec.optim import RowWiseAdagrad

from embcomp.torchrec import fuse_, fused_optimizer
from experiments.config import OptimizerConfig
from experiments.errors import InputError
from experiments.sizing import BuiltModel

_DENSE: dict[str, type[Optimizer]] = {"Adam": torch.optim.Adam, "Adagrad": torch.optim.Adagrad, "SGD": torch.optim.SGD}
_FUSED: dict[str, type[Optimizer]] = {
    "RowWiseAdagrad": RowWiseAdagrad,
    "Adagrad": torch.optim.Adagrad,
    "SGD": torch.optim.SGD,
}


def make_optimizers(built: BuiltModel, config: OptimizerConfig) -> list[Optimizer]:
    """The optimizers that a step calls; the tables are fused here where the configuration says so.

    Raises:
        InputError: the fused optimizer cannot train these tables.
    """
    table_lr = config.lr if config.embedding_lr is None else config.embedding_lr
    fused: list[Optimizer] = []
    if config.embedding:
        fused_settings: dict[str, Any] = {"lr": table_lr, "weight_decay": config.embedding_weight_decay}
        try:
            fuse_(built.embeddings, optimizer=_FUSED[config.embedding], optimizer_kwargs=fused_settings)
            fused.append(fused_optimizer(built.embeddings))
        except ValueError as error:
            raise InputError(f"optimizer.embedding: {error}") from error
    tables = {id(parameter) for parameter in built.embeddings.parameters()}
    trained = [parameter for parameter in built.model.parameters() if parameter.requires_grad]
    # Coupled decay adds decay * E to the gradient of the whole table: that of decay / 2 * ||E||^2 in the loss.
    settings = [(config.lr, config.weight_decay), (table_lr, config.embedding_weight_decay)]
    parts = [[p for p in trained if id(p) not in tables], [p for p in trained if id(p) in tables]]
    if settings[0] == settings[1]:  # one call of the optimizer instead of two
        settings, parts = settings[:1], [trained]
    groups = [
        {"params": part, "lr": lr, "weight_decay": decay}
        for part, (lr, decay) in zip(parts, settings, strict=True)
        if part
    ]
    dense = _DENSE[config.name](groups, fused=True)  # type: ignore[call-arg]
    return [dense, *fused]


def decay_lr(optimizers: list[Optimizer], factor: float, least: float) -> None:
    """Multiply every learning rate, down to `least`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = min(group["lr"], max(group["lr"] * factor, least))
