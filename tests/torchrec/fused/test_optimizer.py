"""`fused_optimizer`: learning rates and state of fused tables, handled as an ordinary optimizer."""

import copy

import pytest
import torch
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad

import embcomp
from embcomp.torchrec import fuse_, fused_optimizer
from tests.torchrec.batches import RAGGED, bag_tables, batch
from tests.torchrec.training import (
    OPTIMIZERS,
    Model,
    assert_same,
    bag_model,
    fused_twin,
    loss_of,
    train_both,
)


def test_a_schedule_acts_as_on_the_unfused_optimizer(engine):
    model = bag_model({"*": embcomp.HashingTrick(rows=7)})
    fused = fused_twin(model, "RowWiseAdagrad")
    outside = RowWiseAdagrad(model.parameters(), lr=0.1, eps=1e-6)
    inside = fused_optimizer(fused)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(opt, 0.3) for opt in (outside, inside)]
    for seed in range(4):
        for each, opt, schedule in zip((model, fused), (outside, inside), schedules, strict=True):
            opt.zero_grad()
            loss_of(each(batch(RAGGED, seed=seed))).backward()
            opt.step()
            schedule.step()
    assert_same(model, fused, outside)


@pytest.mark.parametrize("optimizer", ["momentum", "AdamW"])
def test_a_cycle_of_learning_rate_and_momentum_acts_as_on_the_unfused_optimizer(optimizer):
    kind, settings = OPTIMIZERS[optimizer]
    model = bag_model({"*": embcomp.HashingTrick(rows=7)})
    fused, outside = fused_twin(model, optimizer), kind(model.parameters(), **settings)
    inside = fused_optimizer(fused)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(each, 0.05, total_steps=6, base_momentum=0.5, max_momentum=0.9)
        for each in (outside, inside)
    ]
    for seed in range(5):
        for each, opt, schedule in zip((model, fused), (outside, inside), schedules, strict=True):
            opt.zero_grad()
            loss_of(each(batch(RAGGED, seed=seed))).backward()
            opt.step()
            schedule.step()
    for group, own in zip(outside.param_groups, inside.param_groups, strict=True):
        assert all(own[name] == group[name] for name in own if name != "params")
    assert_same(model, fused, outside)


@pytest.mark.parametrize(
    ("optimizer", "setting", "said"),
    [
        ("Adam", {"lr": float("nan")}, "lr=nan"),
        ("Adam", {"betas": (1.0, 0.9)}, "betas="),
        ("momentum", {"momentum": 0.0}, "momentum=0"),
    ],
)
def test_a_group_that_is_made_impossible_changes_nothing(optimizer, setting, said):
    fused = fused_twin(bag_model({"*": embcomp.HashingTrick(rows=7)}), optimizer)
    handle = fused_optimizer(fused)
    handle.param_groups[0].update(setting)
    with pytest.raises(ValueError, match=said):
        handle.step()
    assert next(iter(setting)) in fused_optimizer(fused).param_groups[0]
    assert fused_optimizer(fused).param_groups[0] != handle.param_groups[0]


def test_a_state_of_an_earlier_version_loads():
    """It had a learning rate and, for each table, one sum."""
    fused = fused_twin(bag_model({"*": embcomp.HashingTrick(rows=7)}), "RowWiseAdagrad")
    handle = fused_optimizer(fused)
    sums = [torch.rand(len(weight)) for weight in handle.param_groups[0]["params"]]
    numbers = list(range(len(sums)))
    saved = {
        "state": {number: {"sum": kept} for number, kept in enumerate(sums)},
        "param_groups": [{"lr": 0.03, "params": numbers}],
    }
    handle.load_state_dict(saved)
    assert handle.param_groups[0]["lr"] == 0.03
    assert handle.param_groups[0]["eps"] == OPTIMIZERS["RowWiseAdagrad"][1]["eps"]
    for states, kept in zip(fused_optimizer(fused).state.values(), sums, strict=True):
        assert torch.equal(states["sum"], kept)


@pytest.mark.parametrize("optimizer", ["SGD", "RowWiseAdagrad"])
def test_a_pickle_of_an_earlier_version_loads(optimizer):
    """Its tables kept a sum each, or nothing."""
    tables = fused_twin(Model(EmbeddingBagCollection(bag_tables())), optimizer).collection
    loss_of(tables(batch(RAGGED)).values()).backward()
    saved = tables.__getstate__()
    weights, states = saved["_saved"]
    saved["_saved"] = (weights, [each["sum"] for each in states if each])
    loaded = type(tables).__new__(type(tables))
    loaded.__setstate__(saved)
    for mine, theirs in zip(loaded.states, states, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_setting_the_learning_rate_takes_effect(engine):
    model = bag_model({"*": embcomp.HashingTrick(rows=7)})
    fused = fused_twin(model, "SGD")
    before = copy.deepcopy(model)
    optimizer = fused_optimizer(fused)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    loss_of(fused(batch(RAGGED))).backward()
    assert_same(before, fused)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.zero_grad()
    assert_same(model, fused, train_both(model, fused, "SGD", [batch(RAGGED)]))


@pytest.mark.parametrize("optimizer", ["Adagrad", "RowWiseAdagrad", "momentum", "AdamW"])
def test_saved_and_resumed_is_as_never_stopped(engine, optimizer, tmp_path):
    methods = {"users": embcomp.HashEmbedding(rows=5), "*": embcomp.UnifiedEmbedding(rows=7, chunk_dim=4)}
    start = bag_model(methods)
    whole = fused_twin(start, optimizer)
    batches = [batch(RAGGED, seed=seed) for seed in range(5)]
    for number, features in enumerate(batches):
        if number == 3:
            handle = fused_optimizer(whole)
            handle.param_groups[0]["lr"] = 0.03
            handle.step()
            torch.save({"model": whole.state_dict(), "optimizer": handle.state_dict()}, tmp_path / "state.pt")
        loss_of(whole(features)).backward()
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = fused_twin(bag_model(methods), optimizer)
    resumed.load_state_dict(saved["model"])
    fused_optimizer(resumed).load_state_dict(saved["optimizer"])
    for features in batches[3:]:
        loss_of(resumed(features)).backward()
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    states = [fused_optimizer(each).state_dict() for each in (whole, resumed)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for number, state in states[0]["state"].items():
        assert all(torch.equal(kept, states[1]["state"][number][name]) for name, kept in state.items())


@pytest.mark.parametrize("other", ["SGD", "Adagrad", "larger"])
def test_another_optimizers_state_is_refused_and_changes_nothing(engine, other):
    fused = fused_twin(bag_model({"*": embcomp.HashingTrick(rows=7)}), "RowWiseAdagrad")
    rows = 9 if other == "larger" else 7
    another = fused_twin(
        bag_model({"*": embcomp.HashingTrick(rows=rows)}), "RowWiseAdagrad" if other == "larger" else other, lr=7.0
    )
    loss_of(fused(batch(RAGGED))).backward()
    handle = fused_optimizer(fused)
    before = copy.deepcopy(handle.state_dict())
    with pytest.raises(ValueError, match="another optimizer or other tables"):
        handle.load_state_dict(fused_optimizer(another).state_dict())
    assert handle.state_dict()["param_groups"] == before["param_groups"]
    for number, state in before["state"].items():
        assert torch.equal(state["sum"], handle.state_dict()["state"][number]["sum"])


def test_two_calls_of_fuse_keep_their_learning_rates(engine):
    def towers() -> nn.ModuleDict:
        torch.manual_seed(0)
        return nn.ModuleDict({name: bag_model({"*": embcomp.HashingTrick(rows=7)}) for name in ("a", "b")})

    model, fused = towers(), towers()
    fuse_(fused["a"], optimizer=torch.optim.SGD, optimizer_kwargs={"lr": 0.1})
    fuse_(fused["b"], optimizer=torch.optim.SGD, optimizer_kwargs={"lr": 0.5})
    handle = fused_optimizer(fused)
    assert [group["lr"] for group in handle.param_groups] == [0.1, 0.5]
    handle.step()
    outside = torch.optim.SGD(
        [{"params": model["a"].parameters(), "lr": 0.1}, {"params": model["b"].parameters()}], 0.5
    )
    for each in (model, fused):
        loss_of(each["a"](batch(RAGGED)) + each["b"](batch(RAGGED))).backward()
    outside.step()
    assert_same(model, fused)


def test_fused_optimizer_needs_fused_tables():
    with pytest.raises(ValueError, match="fuse_ first"):
        fused_optimizer(bag_model({}))
