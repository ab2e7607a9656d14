"""Short trainings of a few plans, by successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943)."""

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from embcomp.compress import compress_
from embcomp.methods.base import Method
from embcomp.notes import CompressionWarning
from embcomp.planner.kept_trials import KeptTrials

Train = Callable[[nn.Module, float], Any]
"""A function that trains a model for a share of a full training."""


Difference = Callable[[Sequence[float], Sequence[float]], tuple[float, float]]
"""A function that returns the mean difference of two models' losses on the same batches, and its standard error."""

SURE = 2.0
"""The standard errors by which a plan must be better than the first."""


def halved(
    model: nn.Module,
    plans: Sequence[Mapping[str, Method]],
    train: Train,
    judge: Callable[[nn.Module], Sequence[float]],
    difference: Difference,
    *,
    effort: float,
    kept: KeptTrials | None = None,
    heard: Callable[[str], None] = lambda text: None,
    failed: Callable[[int, str], None] = lambda plan, why: None,
) -> tuple[int, list[list[float]]]:
    """Train a copy of the model for each plan, and go on with the first and the better half of the others.

    Each round takes the same part of the effort, so that the remaining plans are trained longer and longer. The first
    plan, the one that is expected to be best, stays to the end; the last of the others replaces it if it is better by
    more than chance.

    Args:
        model: the trained model; each copy starts at its tables (`init="warm"`).
        plans: the methods of each plan by table, as `compress_` takes them; the one that is expected to be best first.
        train: a function that trains a model for a share of a full training.
        judge: a function that returns the losses of a model on held-out batches.
        difference: a function that compares two such lists.
        effort: the share of one full training that all plans together may take.
        kept: the trainings that an earlier call finished, which are not done again.
        heard: a function that is told of each training.
        failed: a function that is told the index of a plan that failed, and the error.

    Returns:
        The index of the winner, and the last losses of each plan. Plans that were dropped early were judged after a
        shorter training. A plan whose training fails, or with a loss that is not finite, is dropped without losses.

    Raises:
        ValueError: no plan could be trained; the text has the error of the first.
    """
    rounds = max(1, (len(plans) - 1).bit_length())
    racing: dict[int, nn.Module] = {}
    losses: list[list[float]] = [[] for _ in plans]
    errors: list[str] = []

    def fails(i: int, error: Exception) -> None:
        del racing[i]
        errors.append(f"{type(error).__name__}: {error}")
        failed(i, errors[-1])

    for i, plan in enumerate(plans):
        racing[i] = model
        try:
            racing[i] = copy.deepcopy(model)
            if not model.training:
                racing[i].train()
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
                warnings.simplefilter("ignore", CompressionWarning)
                compress_(racing[i], plan, init="warm")
        except Exception as error:  # of one plan; the others may still be good
            fails(i, error)
    before, kept = list(racing), kept or KeptTrials(None, "")
    for number in range(rounds if racing else 0):
        before, share = list(racing), effort / rounds / len(racing)
        for i in before:
            heard(f"plan {i + 1} for {share:.1%} of a training")
            try:
                found = kept.load(plans[i], number, share, racing[i])
                if found is None:
                    train(racing[i], share)
                    found = [*judge(racing[i])]
                    if not all(map(math.isfinite, found)):
                        raise ValueError("a loss after it is not finite")
                    kept.save(plans[i], number, share, racing[i], found)
                losses[i] = found
            except Exception as error:
                fails(i, error)
        others = _ordered([i for i in racing if i], losses, difference)
        staying = {0, *others[: max(1, len(others) // 2)]}
        racing = {i: candidate for i, candidate in racing.items() if i in staying}
        if not racing:
            break
    left = [i for i in racing or before if losses[i]]  # if the last round failed, what was before it
    if not left:
        raise ValueError(f"no plan could be trained by `train`: {errors[0]}")
    best, *_ = _ordered([i for i in left if i] or left, losses, difference)
    if 0 in left:
        rise, error = difference(losses[best], losses[0])
        best = best if rise < -SURE * error else 0
    return best, losses


def _ordered(plans: Sequence[int], losses: Sequence[Sequence[float]], difference: Difference) -> list[int]:
    """The plans by their mean loss."""
    return sorted(plans, key=lambda i: difference(losses[i], losses[plans[0]])[0])
