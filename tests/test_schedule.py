"""`Schedule` against the same changes by hand, and continued from its state."""

import copy

import pytest
import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

import embcomp
from embcomp import ClusteredHash, HotRows, HotTracker, Schedule, recluster_
from embcomp.schedule import UNTIL, changes_in_training
from embcomp.torchrec import fuse_

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


COUNTS = torch.arange(IDS, 0, -1)
SEARCHING = {
    "magnitude": embcomp.LearnedMask(keep=0.2),
    "threshold": embcomp.LearnedMask(keep=0.2, rule="threshold", start=-6.0),
    "rows": embcomp.LearnedMask(keep=0.2, rule="rows"),
    "gates": embcomp.LearnedMask(keep=0.2, rule="gates", counts=COUNTS, groups=4),
    "mixture": embcomp.LearnedWidths(width=2),
    "bits": embcomp.FrequencyBits(mean_bits=3, counts=COUNTS),
}


@pytest.mark.parametrize("killed", [1, 3])  # in the search, and after it
@pytest.mark.parametrize("name", SEARCHING)
def test_a_schedule_that_is_made_for_loaded_weights_ends_the_same(name, killed):
    """It begins the search anew, which must not last when its state is loaded."""
    whole = made(SEARCHING[name])
    scheduled(whole)
    part = made(SEARCHING[name])
    optimizer, schedule = scheduled(part, last=killed)
    saved = copy.deepcopy((part.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    again = made(SEARCHING[name])
    again.load_state_dict(saved[0])
    _, resumed = scheduled(again, first=killed, state=saved[2], optimizer_state=saved[1])
    assert resumed.stage == "train"
    assert embcomp.served_nbytes(again) == embcomp.served_nbytes(whole)
    assert torch.equal(again["item"].materialize(), whole["item"].materialize())


def test_states_of_other_trainings_are_refused():
    model = made(SEARCHING["magnitude"])
    state = Schedule(model, epochs=4, steps=60).state_dict()
    for of, error in [
        ({"epochs": 5, "steps": 60}, "state is of a Schedule with epochs=4, and this one has epochs=5"),
        ({"epochs": 4, "steps": 61}, "state is of a Schedule with steps=60, and this one has steps=61"),
    ]:
        with pytest.raises(ValueError, match=error):
            Schedule(model, **of).load_state_dict(state)
    with pytest.raises(ValueError, match=r"tables=\[\"MaskStages of 'item'\"\], and this one has tables=\[\"BitStages"):
        Schedule(made(SEARCHING["bits"]), epochs=4, steps=60).load_state_dict(state)


def test_an_optimizer_of_other_rows_is_refused():
    model = nn.ModuleDict({"item": nn.Embedding(IDS, 8)})
    before = torch.optim.Adam([nn.Parameter(torch.zeros(3))])
    embcomp.compress_(model, HotRows(rows=60))
    with pytest.raises(ValueError, match=r"table 'item': the optimizer of the Schedule does not hold its rows"):
        Schedule(model, epochs=2, steps=9, optimizer=before)


def test_frozen_tables_stay_or_are_refused():
    clustered = made(ClusteredHash(rows=12, chunks=2)).requires_grad_(False)
    before = clustered["item"].materialize()
    schedule = Schedule(clustered, epochs=4, steps=1)
    for _ in range(3):
        schedule.epoch_ended()
    assert torch.equal(clustered["item"].materialize(), before)
    with pytest.raises(ValueError, match="table 'item' is frozen, but its method searches"):
        Schedule(made(SEARCHING["rows"]).requires_grad_(False), epochs=4, steps=60)


def test_what_is_held_out_by_hand_stays_frozen():
    model = made(SEARCHING["mixture"])
    alpha = next(p for name, p in model.named_parameters() if name.endswith("alpha"))
    alpha.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    validate = lambda number: model["item"](torch.arange(9)).square().sum()  # noqa: E731
    schedule = Schedule(model, epochs=4, steps=2, optimizer=optimizer, validate=validate)
    before = alpha.clone()
    schedule.step()
    assert not alpha.requires_grad
    assert torch.equal(alpha, before)


def test_a_followed_model_is_copied_and_saved(tmp_path):
    model = made(HotRows(rows=60))
    schedule = Schedule(model, epochs=1, steps=100)
    tracker = HotTracker(model["item"], every=1)
    other = copy.deepcopy(model)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    for each in (other, loaded):  # their gradients are not those of the model
        each["item"](torch.tensor([7, 8, 9])).square().sum().backward()
    assert tracker.step() == 0
    assert torch.equal(loaded["item"].materialize(), model["item"].materialize())
    model["item"](torch.tensor([7, 8, 9])).square().sum().backward()
    assert tracker.step() == 3
    with pytest.raises(TypeError, match="a HotTracker is of one module: make another"):
        copy.deepcopy(tracker)
    schedule.close()
    tracker.close()
    assert not model["item"]._forward_hooks


def test_searches_that_do_not_go_together_or_prune_nothing_are_refused():
    evolution = {"rule": "evolution", "generations": 2, "batches": 1}
    model = nn.ModuleDict({"x": nn.Embedding(IDS, 8), "y": nn.Embedding(IDS, 8)})
    methods = {"x": embcomp.LearnedWidths(width=2, **evolution), "y": embcomp.LearnedWidths(width=2, rule="evolution")}
    embcomp.compress_(model, methods)
    with pytest.raises(ValueError, match=r"table 'y': generations=.*, but 2 for table 'x'"):
        Schedule(model, epochs=4, steps=9, validate=lambda number: torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"table 'item': the 9 steps of its search after the first epoch are fewer"):
        Schedule(made(SEARCHING["magnitude"]), epochs=4, steps=9)
    with pytest.raises(ValueError, match=r"table 'item': ClusteredHash is clustered again in training"):
        Schedule(made(embcomp.LowBit(bits=4, of=ClusteredHash(rows=16, chunks=2))), epochs=4, steps=9)


@pytest.mark.parametrize("fused", [torch.optim.SGD, torch.optim.Adagrad])
def test_rows_that_a_fused_optimizer_trains_need_no_other(fused):
    tables = [EmbeddingBagConfig(name="item", num_embeddings=IDS, embedding_dim=8, feature_names=["item"])]
    model = nn.ModuleDict({"c": EmbeddingBagCollection(tables=tables), "tower": nn.Linear(8, 1)})
    embcomp.compress_(model, ClusteredHash(rows=12, chunks=2))
    model = fuse_(model, optimizer=fused, optimizer_kwargs={"lr": 0.1})
    schedule = Schedule(model, epochs=4, steps=1, optimizer=torch.optim.Adam(model["tower"].parameters()))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    schedule.step()
    schedule.epoch_ended()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
