"""Successive halving: the plan that is left wins, whatever the others lost when they left."""

import math

import pytest
import torch

import embcomp
from embcomp.planner.trials import halved


def test_the_plan_that_is_left_wins_though_its_last_loss_is_not_the_least():
    model = torch.nn.ModuleDict({"item": torch.nn.Embedding(50, 4)})
    plans = [{"item": embcomp.HashingTrick(rows=rows)} for rows in (10, 20, 30, 40)]
    trained: dict[int, float] = {}

    def rows(candidate: torch.nn.Module) -> int:
        return next(candidate.parameters()).shape[0]

    def train(candidate: torch.nn.Module, share: float) -> None:
        trained[rows(candidate)] = trained.get(rows(candidate), 0.0) + share

    # The first judgement orders the plans; in the second all that are left have become worse than those that went.
    winner, losses = halved(model, plans, train, lambda m: rows(m) + 300 * trained[rows(m)], effort=0.4)
    assert winner == 0
    assert min(losses) < losses[winner]
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

    def judge(candidate: torch.nn.Module) -> float:
        return math.inf if how == "nan" and rows(candidate) == 10 else float(rows(candidate))

    winner, losses = halved(model, plans, train, judge, effort=0.3)
    assert winner == 1
    assert losses[0] == math.inf

    def broken(candidate: torch.nn.Module, share: float) -> None:
        raise RuntimeError("no memory")

    with pytest.raises(ValueError, match="no plan could be trained by `train`: RuntimeError: no memory"):
        halved(model, plans, broken, judge, effort=0.3)
