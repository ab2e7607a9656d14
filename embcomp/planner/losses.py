"""The default losses: those of a click model on batches of (inputs..., labels)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embcomp.settings import shown

_STEPS = 30  # of Newton's method, which takes four or five


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
    return F.binary_cross_entropy_with_logits(*_logits(model, batch))


@torch.no_grad()
def calibrated_log_loss(model: nn.Module, batch: Any) -> Tensor:
    """Compute the least log-loss of a * logit + b over a >= 0 and b, and 2 / n more, for a batch as in `log_loss`.

    It tells how well a model ranks, also one that overfits and whose confident errors cost more than its tables say
    (Platt 1999: the scaling of scores to probabilities). a and b are sought by Newton's method; 2 / n is what they are
    expected to gain on n rows that say nothing, here and on others together (Akaike 1974).

    Args:
        model: the model, as in `log_loss`.
        batch: the batch, as in `log_loss`.

    Raises:
        ValueError: the batch has another form.

    Example:
        >>> sure = lambda scores: 100 * scores
        >>> scores = torch.linspace(-3, 3, 200)
        >>> batch = scores, (scores + torch.sin(50 * scores) > 0).float()
        >>> float(log_loss(sure, batch)) > 2, float(calibrated_log_loss(sure, batch)) < math.log(2)
        (True, True)
    """
    logits, labels = (part.cpu().double() for part in _logits(model, batch))
    scores = (logits - logits.mean()) / logits.std(correction=0).clamp(min=1e-12)
    inputs = torch.stack([scores, torch.ones_like(scores)], 1)
    at = torch.zeros(2, dtype=torch.float64, device=logits.device)

    def loss(at: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(inputs @ at, labels)

    for _ in range(_STEPS):
        shares = (inputs @ at).sigmoid()
        slope = inputs.t() @ (shares - labels) / len(labels)
        curve = (inputs.t() * (shares * (1 - shares))) @ inputs / len(labels)
        step = torch.linalg.solve(curve + 1e-9 * torch.eye(2).to(curve), slope)
        size = next((size for size in (1.0, 0.5, 0.1, 0.01) if loss(at - size * step) <= loss(at)), 0.0)
        at = at - size * step
        if size == 0.0 or float(step.abs().max()) < 1e-6:
            break
    if at[0] < 0:  # a model that ranks backwards knows no more than the share of clicks
        shift = labels.mean().clamp(1e-12, 1 - 1e-12).logit()
        at = torch.stack([torch.zeros_like(shift), shift])
    return loss(at) + 2 / len(labels)


def _logits(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """The logits of a batch and its labels, [N] each."""
    *inputs, labels = _parts(batch)
    logits = model(*inputs)
    if not isinstance(logits, Tensor) or logits.numel() != labels.numel():
        raise ValueError(
            f"the model gives {shown(logits)} for {labels.numel()} labels, not one logit each: give choose a loss of "
            "your own, loss=lambda model, batch: ..."
        )
    return logits.reshape(-1), labels.reshape(-1).to(logits.dtype)


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
