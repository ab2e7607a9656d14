"""The interface of the libraries' files: how each of their models is built and trained."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FIELDS, BATCH, DIM = [90, 120, 150], 16, 8
"""Ids of three fields, examples of a batch, the width of vectors."""


@dataclass(frozen=True)
class Case:
    """A new model, and how it is trained."""

    model: nn.Module
    loss: Callable[[nn.Module], Tensor]
    """The loss on a batch, with the penalties of the library."""
    answer: Callable[[nn.Module], Tensor] | None = None
    """The loss less what depends on parameters themselves; else `loss` is that."""
    own_optimizer: bool = False
    """Whether the model trains by the `optimizer` that it made for itself."""
    penalty: Callable[[nn.Module], Tensor] | None = None
    """The library's penalty of its tables alone; it must reach every row."""


Build = Callable[[], Case]


def field_ids() -> Tensor:
    """Draw an id for each example and field, [BATCH, fields]."""
    return torch.stack([torch.randint(0, size, (BATCH,)) for size in FIELDS], dim=1)


def clicks(logits: Tensor) -> Tensor:
    """Return a loss with a click on every second row, for logits or probabilities [B]."""
    target = (torch.arange(len(logits)) % 2).float()
    return F.mse_loss(logits, target)
