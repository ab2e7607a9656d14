"""One process: what is saved comes back, exactly."""

import threading

import pytest
import torch
from torch import nn

import embcomp
from embcomp.checkpoints import Checkpoints, Progress
from embcomp.checkpoints.folder import write_manifest
from tests.checkpoints.trainings import Model, Training, same


@pytest.mark.parametrize("asynchronous", [False, True], ids=["at once", "in the background"])
def test_a_training_goes_on_exactly(tmp_path, asynchronous):
    alone = Training(tmp_path)
    alone.steps(3)
    alone.checkpoints.save(3, {"epoch": 1, "seed": 5, "loss": 0.1}, asynchronous=asynchronous)
    expected = alone.steps(4)  # while the save may still be under way
    alone.checkpoints.wait()

    other = Training(tmp_path, seed=9)
    other.steps(1)  # its optimizer has a state already
    assert other.checkpoints.load() == Progress(3, {"epoch": 1, "seed": 5, "loss": 0.1})
    assert other.steps(4) == expected
    assert same(other.model, alone.model)
    assert [group["lr"] for group in other.optimizer.param_groups] == [0.0125, 0.00125]

    fresh = Training(tmp_path, seed=9)
    fresh.checkpoints.load()
    assert fresh.steps(4) == expected


def test_weights_alone_are_loaded_without_an_optimizer(tmp_path):
    training = Training(tmp_path)
    training.steps(2)
    training.checkpoints.save(2)
    model, drawn = Model(), torch.get_rng_state()
    assert Checkpoints(tmp_path, model).load(random=False) == Progress(2, {})
    assert same(model, training.model)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_it_is_a_folder_of_torch_distributed_checkpoint(tmp_path):
    """Whoever has no embcomp reads the weights with torch alone."""
    training = Training(tmp_path)
    training.checkpoints.save(2)
    model = Model()
    state = {"model": dict(model.state_dict())}
    with pytest.warns(UserWarning, match=r"torch\.distributed is disabled"):
        torch.distributed.checkpoint.load(state, checkpoint_id=tmp_path / "step-0000000002")
    assert same(model, training.model)


def test_names_of_tables_travel_with_the_rows(tmp_path):
    """Hash keys follow from the name of a table, and a table may bear another name where it is loaded."""
    whole = nn.ModuleDict({"a_long_name": nn.ModuleDict({"item": nn.Embedding(100, 8)})})
    saved, loaded = whole["a_long_name"], nn.ModuleDict({"item": nn.Embedding(100, 8)})
    for model in (whole, loaded):
        embcomp.compress_(model, {"*": embcomp.HashingTrick(rows=9)})
    assert not torch.equal(saved["item"].encoder.keys, loaded["item"].encoder.keys)
    Checkpoints(tmp_path, saved).save(0)
    Checkpoints(tmp_path, loaded).load()
    assert torch.equal(saved["item"].materialize(), loaded["item"].materialize())


def test_the_newest_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, Model(), keep=3)
    assert checkpoints.load() is None
    assert not any(tmp_path.iterdir())
    for step in (1, 2, 3, 3, 5, 8):
        checkpoints.save(step, asynchronous=step == 5)
    assert checkpoints.steps() == [8, 5, 3]
    assert len(list(tmp_path.iterdir())) == 3
    assert checkpoints.load(step=5) == Progress(5, {})
    with pytest.raises(FileNotFoundError, match=r"no step 7; it holds \[8, 5, 3\]"):
        checkpoints.load(step=7)
    checkpoints.save(6)  # another way from 5 on
    assert checkpoints.steps() == [6, 5, 3]


def test_settings_keep_their_types(tmp_path):
    model = nn.Linear(2, 2)
    saved = torch.optim.Adam(model.parameters(), lr=0.3, betas=(0.5, 0.7), amsgrad=True)
    model(torch.ones(2)).sum().backward()
    saved.step()
    Checkpoints(tmp_path, model, [saved]).save(1)
    loaded = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.1))
    Checkpoints(tmp_path, model, [loaded]).load()
    (group,) = loaded.param_groups
    assert group["betas"] == (0.5, 0.7)
    assert (group["amsgrad"], group["weight_decay"]) == (True, 0)
    assert torch.equal(group["lr"], torch.tensor(0.3))
    for parameter in model.parameters():
        for name, value in saved.state[parameter].items():
            assert torch.equal(loaded.state[parameter][name], value)


def test_a_save_in_the_background_runs_beside_the_training(tmp_path, monkeypatch):
    training = Training(tmp_path)
    begun, go_on = threading.Event(), threading.Event()

    def slow(*arguments):
        begun.set()
        assert go_on.wait(60)
        return write_manifest(*arguments)

    monkeypatch.setattr("embcomp.checkpoints.checkpoints.write_manifest", slow)
    training.checkpoints.save(1, asynchronous=True)
    assert begun.wait(60)
    training.steps(1)
    assert training.checkpoints.steps() == []
    go_on.set()
    training.checkpoints.save(2)  # waits for the one before
    assert training.checkpoints.steps() == [2, 1]
