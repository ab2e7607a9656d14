"""Successive halving: the plan that is left wins, whatever the others lost when they left."""

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
