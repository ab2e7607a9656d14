"""`fuse_`: training in one process without dense gradients, with the optimizer inside the backward pass."""

from typing import Any

import torch
from torch import nn

from embcomp.torchrec.fused.loss_scale import LossScale, Scaler
from embcomp.torchrec.fused.settings import optimizer_settings
from embcomp.torchrec.fused.tables import FusedTables
from embcomp.torchrec.trainable import trained_collections, untrained_integers


def fuse_(
    model: nn.Module,
    *,
    optimizer: type[torch.optim.Optimizer],
    optimizer_kwargs: dict[str, Any] | None = None,
    grad_scaler: Scaler = None,
) -> nn.Module:
    """Put a fused optimizer under every torchrec collection of a model, compressed or not, in this process.

    A row is updated inside `backward()`, from the summed gradients of the batch, and no dense gradient is made. Other
    parameters are trained by an optimizer as usual; `fused_optimizer(model)` holds the state and the learning rate of
    the fused tables. Current values are kept, and state-dict keys do not change.

    Args:
        model: the model, changed in place.
        optimizer: the class of the optimizer: torch.optim.SGD, torch.optim.Adagrad or torchrec.optim.RowWiseAdagrad.
        optimizer_kwargs: the settings `lr`, `eps` and `weight_decay`.
        grad_scaler: the `torch.amp.GradScaler` that scales the loss, if any. The tables' gradients are divided by its
            scale; gradients of a batch that are not finite change nothing. False asserts that the loss is not scaled,
            although other models of the process use a scaler.

    Returns:
        The model.

    Raises:
        ValueError: the optimizer or a setting is not supported, there is no collection to train, tables are partly
            frozen, another module holds the same weight, or FBGEMM cannot do what is asked. The backward pass raises if
            a scaler is in use that `grad_scaler` does not name.

    Example:
        >>> import torch, embcomp
        >>> from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
        >>> from embcomp.torchrec import CompressedEmbeddingBagCollection, fuse_
        >>> tables = [EmbeddingBagConfig(name="item", num_embeddings=1000, embedding_dim=8, feature_names=["item"])]
        >>> model = CompressedEmbeddingBagCollection(tables, {"*": embcomp.HashingTrick(rows=100)})
        >>> model = fuse_(model, optimizer=torch.optim.Adagrad, optimizer_kwargs={"lr": 0.1})
        >>> batch = KeyedJaggedTensor.from_lengths_sync(["item"], torch.tensor([3, 5]), torch.tensor([1, 1]))
        >>> before = model(batch).values().detach().clone()
        >>> model(batch).values().sum().backward()
        >>> bool((model(batch).values() < before).all())
        True
    """
    settings = optimizer_settings(optimizer, optimizer_kwargs, "fuse")
    places = trained_collections(model, "fuse")
    integers = untrained_integers(model)
    if not places and not integers:
        raise ValueError(
            "fuse_ found no torchrec collection to train inside the model (it is frozen, sharded or fused)"
        )
    loss_scale = LossScale(grad_scaler)
    for tables in integers:  # first, as it may be refused
        tables.attach(settings, loss_scale)
    fused = [FusedTables(collection, settings, loss_scale) for collection in places]
    for tables, where in zip(fused, places.values(), strict=True):
        for parent, name in where:
            setattr(parent, name, tables)
    return model
