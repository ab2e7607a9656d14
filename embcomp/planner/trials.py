"""Short trainings of a few plans, by successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943)."""

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from embcomp.compress import compress_
from embcomp.methods.base import Method
from embcomp.notes import CompressionWarning

Train = Callable[[nn.Module, float], Any]
"""A function that trains a model for a share of a full training."""


def halved(
    model: nn.Module,
    plans: Sequence[Mapping[str, Method]],
    train: Train,
    judge: Callable[[nn.Module], float],
    *,
    effort: float,
    heard: Callable[[str], None] = lambda text: None,
    failed: Callable[[int, str], None] = lambda plan, why: None,
) -> tuple[int, list[float]]:
    """Train a copy of the model for each plan, and go on with the better half until one is left.

    Each round takes the same part of the effort, so that the remaining plans are trained twice as long as before.

    Args:
        model: the trained model; each copy starts at its tables (`init="warm"`).
        plans: the methods of each plan by table, as `compress_` takes them.
        train: a function that trains a model for a share of a full training.
        judge: a function that returns the loss of a model on held-out batches.
        effort: the share of one full training that all plans together may take.
        heard: a function that is told of each training.
        failed: a function that is told the index of a plan that failed, and the error.

    Returns:
        The index of the remaining plan, and the last loss of each plan. Plans that were dropped early were judged after
        a shorter training, so the winner's loss need not be the lowest. A plan whose training fails, or whose loss is
        not finite, has an infinite loss.

    Raises:
        ValueError: no plan could be trained; the text has the error of the first.
    """
    rounds = max(1, (len(plans) - 1).bit_length())
    racing: dict[int, nn.Module] = {}
    losses, why = [math.inf] * len(plans), ""

    def fails(i: int, error: Exception) -> str:
        failed(i, text := f"{type(error).__name__}: {error}")
        return why or text

    for i, plan in enumerate(plans):
        candidate = copy.deepcopy(model)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CompressionWarning)
                compress_(candidate, plan, init="warm")
            racing[i] = candidate
        except Exception as error:  # of one plan; the others may still be good
            why = fails(i, error)
    for _ in range(rounds):
        share, before = effort / rounds / max(1, len(racing)), list(losses)
        for i, candidate in racing.items():
            heard(f"plan {i + 1} for {share:.1%} of a training")
            try:
                train(candidate, share)
                losses[i] = judge(candidate)
            except Exception as error:
                losses[i], why = math.inf, fails(i, error)
        best = [i for i in sorted(racing, key=losses.__getitem__) if losses[i] < math.inf]
        if not best and racing and min(before[i] for i in racing) < math.inf:
            return min(racing, key=before.__getitem__), before  # what the rounds before have shown
        if not best:
            raise ValueError(f"no plan could be trained by `train`: {why or 'every loss after it is not finite'}")
        racing = {i: racing[i] for i in best[: max(1, len(racing) // 2)]}
    return next(iter(racing)), losses
