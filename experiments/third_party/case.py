"""The interface of the libraries' files: how each of their models is built and trained."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FIELDS, BATCH, DIM = [90, 120, 150], 16, 8
"""The numbers of ids of three fields and of examples of a batch, and the width of vectors."""


@dataclass(frozen=True)
class Case:
    """A new model, and how it is trained."""

    model: nn.Module
    loss: Callable[[nn.Module], Tensor]
    """The loss on a batch, with the penalties of the library."""
    answer: Callable[[nn.Module], Tensor] | None = None
    """The loss without terms of the parameters themselves; None if `loss` has no such terms."""
    own_optimizer: bool = False
    """True if the model is trained by the `optimizer` that it made itself."""
    penalty: Callable[[nn.Module], Tensor] | None = None
    """The library's penalty of its tables, without other terms; it must reach every row."""


Build = Callable[[], Case]


def field_ids() -> Tensor:
    """Draw an id for each example and field, [BATCH, fields]."""
    return torch.stack([torch.randint(0, size, (BATCH,)) for size in FIELDS], dim=1)


def clicks(logits: Tensor) -> Tensor:
    """Return a loss with a click on every second row, for logits or probabilities [B]."""
    target = (torch.arange(len(logits)) % 2).float()
    return F.mse_loss(logits, target)
