"""Successive halving: the plan that is left wins, whatever the others lost when they left."""

import math

import numpy as np
import pytest
import torch

import embcomp
from embcomp.planner.trials import halved


def difference(new, old) -> tuple[float, float]:
    """Return the mean of paired differences and its standard error, by numpy."""
    rises = np.subtract(new, old)
    return float(rises.mean()), float(rises.std(ddof=1) / len(rises) ** 0.5) if len(rises) > 1 else 0.0


def test_the_plan_that_is_left_wins_though_its_last_loss_is_not_the_least():
    model = torch.nn.ModuleDict({"item": torch.nn.Embedding(50, 4)})
    plans = [{"item": embcomp.HashingTrick(rows=rows)} for rows in (10, 20, 30, 40)]
    trained: dict[int, float] = {}

    def rows(candidate: torch.nn.Module) -> int:
        return next(candidate.parameters()).shape[0]

    def train(candidate: torch.nn.Module, share: float) -> None:
        trained[rows(candidate)] = trained.get(rows(candidate), 0.0) + share

    def judge(candidate: torch.nn.Module) -> list[float]:
        return [rows(candidate) + 300 * trained[rows(candidate)]]

    # The first judgement orders the plans; in the second all that are left have become worse than those that went.
    winner, losses = halved(model, plans, train, judge, difference, effort=0.4)
    assert winner == 0
    assert min(losses) < losses[winner]  # of one batch
    assert sum(trained.values()) == pytest.approx(0.4)
    assert trained[10] == pytest.approx(3 * trained[40])


@pytest.mark.parametrize("how", ["error", "nan"])
def test_a_plan_whose_training_fails_is_left_out(how: str) -> None:
    model = torch.nn.ModuleDict({"item": torch.nn.Embedding(50, 4)})
    plans = [{"item": embcomp.HashingTrick(rows=rows)} for rows in (10, 20, 30)]

    def rows(candidate: torch.nn.Module) -> int:
        return next(candidate.parameters()).shape[0]

    def train(candidate: torch.nn.Module, share: float) -> None:
        if how == "error" and rows(candidate) == 10:
            raise RuntimeError("no memory")

    def judge(candidate: torch.nn.Module) -> list[float]:
        return [math.inf if how == "nan" and rows(candidate) == 10 else float(rows(candidate))]

    winner, losses = halved(model, plans, train, judge, difference, effort=0.3)
    assert winner == 1
    assert losses[0] == []

    def broken(candidate: torch.nn.Module, share: float) -> None:
        raise RuntimeError("no memory")

    with pytest.raises(ValueError, match="no plan could be trained by `train`: RuntimeError: no memory"):
        halved(model, plans, broken, judge, difference, effort=0.3)


@pytest.mark.parametrize(("gain", "winner"), [(0.02, 2), (0.002, 0)])
def test_a_plan_replaces_the_first_if_it_is_better_by_more_than_chance(gain: float, winner: int) -> None:
    """Batches differ by far more than plans, which are compared batch by batch."""
    model = torch.nn.ModuleDict({"item": torch.nn.Embedding(50, 4)})
    plans = [{"item": embcomp.HashingTrick(rows=rows)} for rows in (10, 20, 30)]
    noise = [np.zeros(8), np.full(8, 0.01), np.tile([0.005, -0.005], 4)]  # the third has a standard error of .0019

    def judge(candidate: torch.nn.Module) -> list[float]:
        plan = next(candidate.parameters()).shape[0] // 10 - 1
        return [0.3 + 0.1 * batch - gain * (plan == 2) + x for batch, x in enumerate(noise[plan])]

    found, losses = halved(model, plans, lambda m, share: None, judge, difference, effort=0.3)
    assert found == winner
    assert [len(each) for each in losses] == [8, 8, 8]
    if winner == 0:  # by its mean alone another would have been chosen
        assert np.mean(losses[2]) < np.mean(losses[0])


def test_a_training_that_fails_at_the_end_leaves_what_was_known_before() -> None:
    model = torch.nn.ModuleDict({"item": torch.nn.Embedding(50, 4)})
    plans = [{"item": embcomp.HashingTrick(rows=rows)} for rows in (10, 20, 30)]
    calls: list[float] = []

    def train(candidate: torch.nn.Module, share: float) -> None:
        calls.append(share)
        if len(calls) > 3:
            raise RuntimeError("no memory")

    found, losses = halved(
        model, plans, train, lambda m: [-float(next(m.parameters()).shape[0])], difference, effort=0.3
    )
    assert found == 2
    assert losses == [[-10.0], [-20.0], [-30.0]]
