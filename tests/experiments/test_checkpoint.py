"""What is saved comes back; what is not ours, or broken, is not used."""

import pytest
import torch
from torch import nn

from experiments.checkpoint import Checkpoints, Progress
from experiments.errors import InputError


@pytest.fixture
def parts():
    model = nn.Linear(3, 2)
    return model, [torch.optim.Adam(model.parameters(), lr=0.1)]


def trained(model, optimizers):
    model(torch.ones(3)).sum().backward()
    optimizers[0].step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_everything_comes_back(parts, tmp_path):
    state = trained(*parts)
    progress = Progress(epoch=2, batch=7, loss_sum=1.25, best=0.7, best_epoch=1, history=[{"valid/auc": 0.7}])
    checkpoints = Checkpoints(tmp_path / "run", "key")
    checkpoints.save(*parts, progress)
    drawn = torch.rand(3)
    model = nn.Linear(3, 2)
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.5)]
    assert checkpoints.restore(model, optimizers) == progress
    assert torch.equal(torch.rand(3), drawn)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert optimizers[0].param_groups[0]["lr"] == 0.1
    assert torch.equal(optimizers[0].state[model.weight]["exp_avg"], parts[1][0].state[parts[0].weight]["exp_avg"])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["last.pt"]


def test_files_of_another_configuration_are_left_aside(parts, tmp_path):
    Checkpoints(tmp_path, "key").save(*parts, Progress(epoch=2))
    assert Checkpoints(tmp_path, "other").restore(*parts) is None


def test_a_file_of_another_version_of_the_code_is_named(parts, tmp_path):
    checkpoints = Checkpoints(tmp_path, "key")
    checkpoints.save(*parts, Progress())
    other = nn.Linear(3, 2, bias=False)
    with pytest.raises(InputError, match=r"last\.pt fits another version.*--force"):
        checkpoints.restore(other, [torch.optim.Adam(other.parameters())])


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_broken_file_is_as_none(parts, tmp_path, content):
    checkpoints = Checkpoints(tmp_path, "key")
    checkpoints.save(*parts, Progress())
    whole = checkpoints.last.read_bytes()
    checkpoints.last.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert checkpoints.restore(*parts) is None


def test_a_save_that_fails_leaves_the_one_before(parts, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, "key")
    checkpoints.save(*parts, Progress(epoch=1))

    def fail(state, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        checkpoints.save(*parts, Progress(epoch=2))
    monkeypatch.undo()
    restored = checkpoints.restore(*parts)
    assert restored is not None
    assert restored.epoch == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_lost_best_weights_are_named(parts, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"best\.pt is gone"):
        Checkpoints(tmp_path, "key").load_best(parts[0])
