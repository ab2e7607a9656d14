"""Checkpoints of another model, optimizer or training are refused, and nothing changes."""

import json
from datetime import timedelta

import pytest
import torch
from torch import nn

import embcomp
from embcomp.checkpoints import Checkpoints
from embcomp.checkpoints.folder import write_manifest
from embcomp.graph import ClusterMap, Mixture
from embcomp.sdim import SDIM
from tests.checkpoints.trainings import COUNTS, Model, Training


def test_a_new_training_does_not_go_over_another(tmp_path):
    Training(tmp_path).checkpoints.save(5)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="holds step 5, and step 5 is to be saved: load it first"):
        Training(tmp_path).checkpoints.save(5)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_later_format_is_refused(tmp_path):
    training = Training(tmp_path)
    training.checkpoints.save(1)
    path = tmp_path / "step-0000000001" / "manifest.json"
    values = json.loads(path.read_text())
    del values["checksum"]
    write_manifest(path.parent, {**values, "format": 99})
    with pytest.raises(ValueError, match=r"manifest\.json has format 99, this version reads up to 2: upgrade"):
        training.checkpoints.load()


OTHERS = {
    "rows": ({"rows": 8}, r"table 'users' .*rows: saved 9, here 8"),
    "map": ({"counts": COUNTS.flip(0)}, r"table 'films' .*hot_ids: saved '.*int32 \[2\] .*', here '.*int32 \[2\]"),
    "dense": ({"width": 4}, r"head\.0\.bias is float32 \[16\] in the checkpoint, float32 \[4\] in the model;.*more"),
}


@pytest.mark.parametrize(("settings", "text"), OTHERS.values(), ids=OTHERS.keys())
def test_a_checkpoint_of_another_model_is_refused_and_nothing_changes(tmp_path, settings, text):
    training = Training(tmp_path)
    training.steps(1)
    training.checkpoints.save(1)
    other = Training(tmp_path, seed=1, model=settings)
    before = {name: value.clone() for name, value in other.model.state_dict().items()}
    drawn = torch.get_rng_state()
    with pytest.raises(ValueError, match=rf"step-0000000001 is a checkpoint of another model: .*{text}"):
        other.checkpoints.load()
    assert all(torch.equal(value, before[name]) for name, value in other.model.state_dict().items())
    assert not other.optimizer.state
    assert torch.equal(torch.get_rng_state(), drawn)


def mixed(**settings) -> nn.ModuleDict:
    rows = torch.arange(12) % 4
    found = ClusterMap.of(rows, 4)
    weights = torch.tensor([0.75, 0.25]).expand(12, 2)
    mixture = Mixture.of(torch.stack([rows, (rows + 1) % 4], 1), weights, found)
    model = nn.ModuleDict({"item": nn.Embedding(12, 8)})
    embcomp.compress_(model, embcomp.SoftGraphHash({"item": found}, weights={"item": mixture}, k=2, **settings))
    return model


def test_a_setting_that_an_older_version_did_not_save_has_its_default(tmp_path):
    older = mixed()
    del older["item"].encoder.config["weight_bits"]
    Checkpoints(tmp_path, older).save(1)
    model = mixed()
    Checkpoints(tmp_path, model).load()
    assert torch.equal(model["item"].weight, older["item"].weight)
    with pytest.raises(ValueError, match=r"another map or configuration .*weight_bits: saved 8, here 4"):
        Checkpoints(tmp_path, mixed(weight_bits=4)).load()


def behaviors(seed: int, **settings) -> nn.ModuleDict:
    torch.manual_seed(seed)
    return nn.ModuleDict({"history": SDIM(8, num_hashes=12, seed=seed, **settings), "films": nn.Embedding(9, 8)})


def test_projections_come_back_and_other_hashes_are_refused(tmp_path):
    model = behaviors(0, rule="kernel")
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1
    Checkpoints(tmp_path / "kernel", model).save(1)
    other = behaviors(1, rule="kernel")
    assert not torch.equal(other["history"].projection.matrix, model["history"].projection.matrix)
    Checkpoints(tmp_path / "kernel", other).load()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())

    Checkpoints(tmp_path / "l2", behaviors(0, hash_width=3)).save(1)
    other = behaviors(1, hash_width=4)  # all of its tensors have the same shapes
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"of another model: SDIM 'history' has another .*\(hash_width: saved 3, here 4"
    ):
        Checkpoints(tmp_path / "l2", other).load()
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_another_model_or_optimizer_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    Checkpoints(tmp_path, model, [torch.optim.SGD(model.parameters(), momentum=0.9)]).save(1)
    with pytest.raises(ValueError, match=r"1\.bias is in the checkpoint alone; 1\.weight is in the checkpoint alone"):
        Checkpoints(tmp_path, model[:1]).load()
    with pytest.raises(ValueError, match=r"0\.bias is trained by SGD in the checkpoint, by Adam here"):
        Checkpoints(tmp_path, model, [torch.optim.Adam(model.parameters())]).load()
    with pytest.raises(ValueError, match=r"1\.bias is trained by SGD in the checkpoint, and by no optimizer here"):
        Checkpoints(tmp_path, model, [torch.optim.SGD(model[0].parameters())]).load()
    with pytest.raises(ValueError, match=r"SGD trains a parameter of shape \[3, 3\] that the model does not have"):
        Checkpoints(tmp_path, model, [torch.optim.SGD([nn.Parameter(torch.ones(3, 3))])]).load()


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="keep must be an integer of at least 1, got 0"):
        Checkpoints(tmp_path, Model(), keep=0)
    with pytest.raises(ValueError, match=r"timeout must be positive, got datetime.timedelta\(0\)"):
        Checkpoints(tmp_path, Model(), timeout=timedelta())
    with pytest.raises(TypeError, match="part 'loader' is a list: give an object with state_dict"):
        Checkpoints(tmp_path, Model(), parts={"loader": []})
    with pytest.raises(ValueError, match=r"part '\.\./up': a name has letters"):
        Checkpoints(tmp_path, Model(), parts={"../up": b""})
    with pytest.raises(ValueError, match="step must be an integer of at least 0, got -1"):
        Checkpoints(tmp_path, Model()).save(-1)
    with pytest.raises(ValueError, match=r"position must hold numbers and texts, not tensors: 0: position\['at'\]"):
        Checkpoints(tmp_path, Model()).save(1, {"at": torch.ones(1)})
    assert not any(tmp_path.iterdir())
