"""The optimizers of a run: one for all parameters, or one for the model and a fused one inside its tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torchrec.optim import PartialRowWiseAdam, RowWiseAdagrad
from torchrec.optim.optimizers import in_backward_optimizer_filter

from embcomp.torchrec import fuse_, fused_optimizer
from experiments.config import OptimizerConfig
from experiments.errors import InputError
from experiments.processes import distributed
from experiments.tasks.sizing import BuiltModel

_DENSE: dict[str, type[Optimizer]] = {
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "Adagrad": torch.optim.Adagrad,
    "SGD": torch.optim.SGD,
}
_FUSED: dict[str, type[Optimizer]] = {
    "RowWiseAdagrad": RowWiseAdagrad,
    "Adagrad": torch.optim.Adagrad,
    "SGD": torch.optim.SGD,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "PartialRowWiseAdam": PartialRowWiseAdam,
}


def make_optimizers(
    built: BuiltModel, config: OptimizerConfig, device: torch.device | None = None
) -> tuple[nn.Module, list[Optimizer]]:
    """Return the model to train and the optimizers that a step calls.

    The tables are fused if the configuration says so. With several processes the model is distributed over them.

    Raises:
        InputError: the fused optimizer cannot train these tables.
    """
    table_lr = config.lr if config.embedding_lr is None else config.embedding_lr
    model, fused = built.model, []
    settings: dict[str, Any] = {"lr": table_lr, "weight_decay": config.embedding_weight_decay}
    try:
        if distributed.size() > 1:
            inside = (_FUSED[config.embedding], settings) if config.embedding else None
            model, fused = distributed.spread(model, device or torch.device("cpu"), inside)
        elif config.embedding:
            fuse_(built.embeddings, optimizer=_FUSED[config.embedding], optimizer_kwargs=settings)
            fused = [fused_optimizer(built.embeddings)]
    except ValueError as error:
        raise InputError(f"optimizer.embedding: {error}") from error
    return model, [_dense(built, config, table_lr), *fused]


def _dense(built: BuiltModel, config: OptimizerConfig, table_lr: float) -> Optimizer:
    """Return the optimizer of all parameters that are not updated inside the backward pass."""
    tables = {id(parameter) for parameter in built.embeddings.parameters()}
    outside = in_backward_optimizer_filter(built.model.named_parameters())
    trained = [parameter for _, parameter in outside if parameter.requires_grad]
    # Coupled decay adds decay * E to the gradient of the whole table: that of decay / 2 * ||E||^2 in the loss.
    settings = [(config.lr, config.weight_decay), (table_lr, config.embedding_weight_decay)]
    parts = [[p for p in trained if id(p) not in tables], [p for p in trained if id(p) in tables]]
    if settings[0] == settings[1]:  # one call of the optimizer instead of two
        settings, parts = settings[:1], [trained]
    groups = [
        {"params": parameters, "lr": lr, "weight_decay": decay}
        for parameters, (lr, decay) in zip(parts, settings, strict=True)
        if parameters
    ]
    return _DENSE[config.name](groups, fused=True)  # type: ignore[call-arg]


def decay_lr(optimizers: list[Optimizer], factor: float, least: float) -> None:
    """Multiply every learning rate, down to `least`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = min(group["lr"], max(group["lr"] * factor, least))
