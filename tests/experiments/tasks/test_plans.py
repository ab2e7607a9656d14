"""Plans that are kept: what is built from them is what the method itself would give."""

import dataclasses

import pytest
import torch

from embcomp.methods import HashingTrick, LowRank, Table
from embcomp.testing.examples import EXAMPLES
from experiments.tasks import plans
from experiments.tasks.plans import Plans
from experiments.tasks.task import prepare

CPU = torch.device("cpu")
TABLES = [Table("a", 40, 16), Table("b", 30, 16)]


def content(plan):
    """All tensors of a plan, and random numbers as they are after it."""
    found = {
        (table.table.name, part, name): value.clone()
        for table in plan.tables
        for part in ("encoder", "combiner")
        for name, value in getattr(table, part).state_dict().items()
    }
    return {**found, "random": torch.get_rng_state()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
@pytest.mark.parametrize("apart", [False, True])
def test_a_kept_plan_is_the_plan_that_a_model_of_this_seed_makes(example, apart):
    method = example.make(TABLES)
    groups = [[table] for table in TABLES] if apart else [TABLES]
    kept, before = Plans(method), torch.get_rng_state()
    made = kept.make(groups, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    names = ["shared", "shared_1" if method.shares_store else "shared"][: len(groups)]
    for _ in range(2):  # each model has a plan of its own
        torch.manual_seed(3)
        own = [content(method.plan(*group)) for group in zip(groups, names, strict=True)]
        torch.manual_seed(3)
        for group, name, expected, first in zip(groups, names, own, made, strict=True):
            plan = kept.plan(method, group, name)
            assert_same(content(plan), expected)
            assert plan is not first
            assert plan.stores == first.stores
            with torch.no_grad():
                for table in plan.tables:
                    for value in table.combiner.parameters():
                        value.fill_(7.0)  # as training would


def test_other_tables_settings_or_random_numbers_are_planned(monkeypatch):
    method = LowRank(of=HashingTrick(rows=7), rank=2)
    kept = Plans(method)
    kept.make([TABLES], seed=0)
    planned = []
    own = LowRank.plan
    monkeypatch.setattr(LowRank, "plan", lambda self, *args: planned.append(self) or own(self, *args))
    torch.manual_seed(0)
    kept.plan(dataclasses.replace(method), TABLES)  # equal
    assert planned == []
    for seed, other, tables, group in (
        (1, method, TABLES, "shared"),
        (0, LowRank(of=HashingTrick(rows=8), rank=2), TABLES, "shared"),
        (0, method, TABLES[:1], "shared"),
        (0, method, TABLES, "shared_1"),
    ):
        torch.manual_seed(seed)
        expected = content(own(other, tables, group))
        torch.manual_seed(seed)
        assert_same(content(kept.plan(other, tables, group)), expected)
    assert len(planned) == 4


def test_a_large_plan_is_not_kept(monkeypatch):
    monkeypatch.setattr(plans, "MOST", 15)
    kept = Plans(HashingTrick(rows=7))
    kept.make([TABLES], seed=0)
    assert not kept._made
    monkeypatch.setattr(plans, "MOST", 16)  # two keys of 8 bytes
    kept.make([TABLES], seed=0)
    assert kept._made


@pytest.mark.parametrize(
    "options",
    [
        {"method": "LowRank", "nbytes": 9000, "options": {"rank": 2, "of": {"method": "HashingTrick"}}},
        {"method": "ROBE", "options": {"size": 400, "block": 4}, "apart": True},
        {"method": "UnifiedEmbedding", "share": 0.3, "options": {"chunk_dim": 4}},
        {"method": "HashingTrick", "table": ["user", "item"], "share": 0.3},
    ],
    ids=lambda options: options["method"],
)
def test_models_from_kept_plans_are_those_from_plans_of_their_own(make_run, options, monkeypatch):
    task = prepare(make_run(methods=[options]))
    other = dataclasses.replace(task, plans=Plans(task.method))  # keeps none
    planned = []
    own = type(task.method).plan
    monkeypatch.setattr(
        type(task.method), "plan", lambda self, *args, **names: planned.append(self) or own(self, *args, **names)
    )
    first, again = task.model(CPU), task.model(CPU)
    assert planned == []
    random = torch.get_rng_state()
    expected = other.model(CPU)
    assert planned
    assert torch.equal(torch.get_rng_state(), random)
    for built in (first, again):
        assert_same(built.model.state_dict(), expected.model.state_dict())
    parameters = {id(each) for each in first.model.parameters()}
    assert not parameters & {id(each) for each in again.model.parameters()}
