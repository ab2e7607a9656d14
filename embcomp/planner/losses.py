"""The default loss: that of a click model on batches of (inputs..., labels)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embcomp.settings import shown


def log_loss(model: nn.Module, batch: Any) -> Tensor:
    """Compute the mean log-loss of a model that outputs logits, for a batch of (inputs..., labels).

    Args:
        model: the model; `model(*inputs)` returns as many logits as there are labels.
        batch: a tuple or list, the labels (0 or 1) last.

    Raises:
        ValueError: the batch has another form.

    Example:
        >>> model = nn.Linear(3, 1)
        >>> bool(log_loss(model, (torch.ones(4, 3), torch.tensor([0.0, 1.0, 1.0, 0.0]))) > 0)
        True
    """
    *inputs, labels = _parts(batch)
    logits = model(*inputs)
    if not isinstance(logits, Tensor) or logits.numel() != labels.numel():
        raise ValueError(
            f"the model gives {shown(logits)} for {labels.numel()} labels, not one logit each: give choose a loss of "
            "your own, loss=lambda model, batch: ..."
        )
    return F.binary_cross_entropy_with_logits(logits.reshape(-1), labels.reshape(-1).to(logits.dtype))


def check_labels(batches: Sequence[Any]) -> float:
    """Check that the labels of all batches together have both classes; return their entropy in nats.

    Raises:
        ValueError: labels are neither 0 nor 1, or all equal.
    """
    labels = torch.cat([_parts(batch)[-1].reshape(-1).double() for batch in batches])
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError(
            f"the labels of data must be 0 or 1, got {shown(labels.unique()[:5].tolist())}: give a loss of your own"
        )
    clicked = float(labels.mean())
    if clicked in (0.0, 1.0):
        raise ValueError(
            f"all {labels.numel()} labels of data are {clicked:.0f}: held-out batches need both classes, to tell what "
            "a table is worth"
        )
    return -clicked * math.log(clicked) - (1 - clicked) * math.log(1 - clicked)


def _parts(batch: Any) -> Sequence[Any]:
    if not isinstance(batch, Sequence) or len(batch) < 2 or not isinstance(batch[-1], Tensor):
        raise ValueError(
            "without a loss, data must be batches of (inputs..., labels), labels a tensor; got a batch of "
            f"{shown(batch)}: give loss=lambda model, batch: ... for other forms"
        )
    return batch
