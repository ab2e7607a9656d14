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
    clip_grad_value: float | None = None,
    clip_grad_norm: float | None = None,
) -> nn.Module:
    """Put a fused optimizer under every torchrec collection of a model, compressed or not, in this process.

    A row is updated inside `backward()`, from the summed gradients of the batch, and no dense gradient is made. Other
    parameters are trained by an optimizer as usual; `fused_optimizer(model)` holds the state and the learning rate of
    the fused tables. Current values are kept, and state-dict keys do not change.

    A row moves in the steps that read it, exactly as torch's optimizer would move it if there were no others; moments
    and momentum stay as they are in between, and the bias of Adam's moments is corrected by the row's own count of
    steps. With `optimizer_kwargs={"lazy": False}` all rows move in every step, as under a dense gradient: on CPU, at
    the cost of a pass over the table.

    Args:
        model: the model, changed in place.
        optimizer: the class of the optimizer: SGD, Adagrad, Adam or AdamW of torch.optim; RowWiseAdagrad,
            PartialRowWiseAdam, LAMB or PartialRowWiseLAMB of torchrec.optim.
        optimizer_kwargs: the settings of the optimizer among `lr`, `eps`, `betas`, `momentum`, `nesterov` and
            `weight_decay`, and `lazy`.
        grad_scaler: the `torch.amp.GradScaler` that scales the loss, if any. The tables' gradients are divided by its
            scale; gradients of a batch that are not finite change nothing. False asserts that the loss is not scaled,
            although other models of the process use a scaler.
        clip_grad_value: the largest magnitude of a value in the gradient of a row, as in
            `torch.nn.utils.clip_grad_value_`; on CPU.
        clip_grad_norm: the largest norm of the gradient of a table, each table by itself, as in
            `torch.nn.utils.clip_grad_norm_`; on CPU. The norm over a whole model would be known too late.

    Returns:
        The model.

    Raises:
        ValueError: the optimizer is not supported, a setting is unknown or impossible, there is no collection to train,
            tables are partly frozen, another module holds the same weight, or FBGEMM cannot do what is asked. The
            backward pass raises if a scaler is in use that `grad_scaler` does not name.

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
    settings = optimizer_settings(optimizer, optimizer_kwargs, "fuse", clip_grad_value, clip_grad_norm)
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
