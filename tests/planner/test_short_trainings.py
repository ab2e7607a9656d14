"""Level 3 on a trained model: which plans compete, how they are compared, and what a stop leaves."""

import copy

import numpy as np
import pytest
import torch

import embcomp
from embcomp.planner.choice import kind
from embcomp.planner.estimates import ByProbes
from embcomp.planner.kept_trials import KeptTrials
from embcomp.planner.losses import log_loss
from embcomp.planner.options import options_of
from embcomp.planner.probes import Probes
from embcomp.planner.search import Search
from embcomp.planner.tables import held_tables
from tests.planner.conftest import IDS, WIDTH, mean_loss

FULL = 4 * WIDTH * sum(IDS.values())


def test_short_trainings_choose_among_plans(trained, held_out):
    shares, trained_on = [], []

    def train(model, share):
        shares.append(share)
        trained_on.append(model)  # and trains nothing

    choice = embcomp.choose(trained, "8%", data=held_out, train=train, effort=0.25)
    assert sum(shares) == pytest.approx(0.25)
    assert choice.level == 3
    assert choice.nbytes <= choice.budget
    first, *others = [
        np.array([mean_loss(model, [batch]) for batch in held_out]) for model in dict.fromkeys(trained_on)
    ]
    rises = min(others, key=np.mean) - first  # batch by batch
    better = rises.mean() < -2 * rises.std(ddof=1) / len(rises) ** 0.5
    swapped = copy.deepcopy(trained)
    embcomp.compress_(swapped, choice.methods, init="warm")
    expected = first.mean() + (rises.mean() if better else 0)
    assert mean_loss(swapped, held_out) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("share", [0.05, 0.08, 0.11, 1 / 12])
def test_plans_that_compete_differ_in_large_tables_and_are_expected_to_lose_about_as_little(trained, held_out, share):
    held = held_tables(trained, None)
    judge = ByProbes(held, Probes(trained, held, held_out, log_loss), "fresh")
    search = Search(held, options_of(held, "served"), judge, "served", int(share * FULL))
    rivals = search.rivals()
    ways = [[(o.tables, kind(o.method), getattr(o.method, "bits", None)) for o in plan] for plan in rivals]
    assert len(rivals) > 1
    assert all(a != b for i, a in enumerate(ways) for b in ways[:i])
    least = min(map(search.cost, search.candidates()))
    assert judge.joint(rivals[0]) <= least
    assert all(judge.joint(plan) <= 1.5 * least for plan in rivals)  # without the price, and with rows that grew
    assert all(sum(option.served for option in plan) <= int(share * FULL) for plan in rivals)


def test_the_copies_are_in_training_mode_and_a_first_plan_that_fails_is_said(trained, held_out):
    modes = []

    def train(model, share):
        modes.append(model.training)
        if len(modes) == 1:
            raise RuntimeError("no memory")

    choice = embcomp.choose(copy.deepcopy(trained).eval(), "8%", data=held_out, train=train)
    assert all(modes)
    (said, wrong) = choice.notes[:2]
    assert "losses failed, " in said
    assert said.endswith("the best of the others")
    assert "the short training of plan 1" in wrong


def test_short_trainings_that_were_stopped_go_on(trained, held_out, tmp_path):
    def run(stop: int, cache) -> tuple[list[float], embcomp.Choice | None]:
        """Train by a step that the number of calls does not change; return the shares of the trainings."""
        shares: list[float] = []

        def train(model, share):
            if len(shares) == stop:
                raise KeyboardInterrupt
            shares.append(share)
            model.train()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            log_loss(model, held_out[0]).backward()
            optimizer.step()

        try:
            return shares, embcomp.choose(trained, "8%", data=held_out, train=train, cache=cache)
        except KeyboardInterrupt:
            return shares, None

    whole, expected = run(-1, tmp_path / "whole")
    for stop in (1, len(whole) - 1):
        cache = tmp_path / f"stopped-{stop}"
        first, none = run(stop, cache)
        second, choice = run(-1, cache)
        assert none is None
        assert first + second == whole
        assert choice.notes == expected.notes
        assert choice.methods == expected.methods
        assert [path.name for path in tmp_path.glob(f"{cache.name}*")] == [cache.name]


def test_a_damaged_file_of_a_training_is_not_taken(trained, held_out, tmp_path):
    kept = KeptTrials(tmp_path / "trials", "")
    plan = {"tables.user": embcomp.LowBit(bits=4)}
    kept.save(plan, 0, 0.1, trained, [0.5])
    assert kept.load(plan, 0, 0.1, copy.deepcopy(trained)) == [0.5]
    assert kept.load(plan, 1, 0.1, trained) is None
    (path,) = (tmp_path / "trials").iterdir()
    path.write_bytes(path.read_bytes()[:500])
    assert kept.load(plan, 0, 0.1, trained) is None
