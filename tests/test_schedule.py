"""`Schedule` against the same changes by hand, and continued from its state."""

import copy

import pytest
import torch
from torch import nn

import embcomp
from embcomp import ClusteredHash, HotRows, HotTracker, Schedule, recluster_
from embcomp.schedule import UNTIL, changes_in_training

EPOCHS, STEPS, IDS = 4, 60, 200


def made(method):
    torch.manual_seed(0)
    model = nn.ModuleDict({"item": nn.Embedding(IDS, 8)})
    embcomp.compress_(model, method)
    return model


def train(model, optimizer, first, last, after_step, after_epoch):
    """Train some epochs, each on ids and targets that follow from its number and that of the step."""
    for epoch in range(first, last):
        for step in range(STEPS):
            draw = torch.Generator().manual_seed(1000 * epoch + step)
            ids = (torch.rand(16, generator=draw).square() * IDS).long()
            target = torch.sin(ids.unsqueeze(1) * torch.arange(1.0, 9.0))
            (model["item"](ids) - target).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            after_step()
        after_epoch(epoch)


def scheduled(model, first=0, last=EPOCHS, state=None, optimizer_state=None):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    schedule = Schedule(model, epochs=EPOCHS, steps=STEPS, optimizer=optimizer)
    if state is not None:
        optimizer.load_state_dict(optimizer_state)
        schedule.load_state_dict(state)
    train(model, optimizer, first, last, schedule.step, lambda epoch: schedule.epoch_ended())
    return optimizer, schedule


def test_rows_move_as_by_a_tracker():
    ours, theirs = made(HotRows(rows=60)), made(HotRows(rows=60))
    scheduled(ours)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.05)
    tracker = HotTracker(theirs["item"], optimizer=optimizer)
    train(theirs, optimizer, 0, EPOCHS, tracker.step, lambda epoch: None)
    assert len(tracker.owners()) > 0
    assert torch.equal(ours["item"].materialize(), theirs["item"].materialize())


def test_tables_are_clustered_as_by_hand():
    ours, theirs = (made(ClusteredHash(rows=12, chunks=2)) for _ in range(2))
    scheduled(ours)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.05)

    def cluster(epoch):
        if epoch + 1 <= UNTIL * EPOCHS:
            recluster_(theirs["item"], optimizer=optimizer)

    train(theirs, optimizer, 0, EPOCHS, lambda: None, cluster)
    assert torch.equal(ours["item"].materialize(), theirs["item"].materialize())


@pytest.mark.parametrize("method", [HotRows(rows=60), ClusteredHash(rows=12, chunks=2)], ids=["rows", "clusters"])
def test_a_continued_training_ends_like_another(method):
    whole = made(method)
    scheduled(whole)
    parted = made(method)
    optimizer, schedule = scheduled(parted, 0, 2)
    states = copy.deepcopy((parted.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    continued = made(method)
    continued.load_state_dict(states[0])
    scheduled(continued, 2, EPOCHS, states[2], states[1])
    assert torch.equal(continued["item"].materialize(), whole["item"].materialize())


def test_models_whose_methods_do_not_change():
    model = nn.ModuleDict({"item": nn.Embedding(IDS, 8)})
    embcomp.compress_(model, embcomp.HashingTrick(rows=50))
    schedule = Schedule(model, epochs=1, steps=1)
    assert not schedule
    assert not changes_in_training(model)
    assert changes_in_training(made(HotRows(rows=60)))
    assert schedule.penalty() == 0.0
    assert schedule.stage == "train"


def test_what_it_refuses():
    model = made(HotRows(rows=60))
    for wrong in ({"epochs": 0, "steps": 1}, {"epochs": 1, "steps": 0}, {"epochs": 1.5, "steps": 1}):
        with pytest.raises(ValueError, match=r"Schedule: (epochs|steps)"):
            Schedule(model, **wrong)
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    with pytest.raises(ValueError, match="wrapped in DistributedDataParallel: a Schedule is for one process"):
        Schedule(nn.ModuleDict({"model": wrapped}), epochs=1, steps=1)
    state, other = Schedule(model, epochs=1, steps=1).state_dict(), Schedule(nn.ModuleDict(), epochs=1, steps=1)
    with pytest.raises(ValueError, match="stages of 1 tables, the model those of 0"):
        other.load_state_dict(state)
