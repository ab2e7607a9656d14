"""What is saved comes back; what is not ours, or broken, is not used."""

from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.errors import InputError
from experiments.training.checkpoint import Best, Last, Progress


@pytest.fixture
def parts():
    model = nn.Linear(3, 2)
    return model, [torch.optim.Adam(model.parameters(), lr=0.1, fused=True)]


def trained(model, optimizers):
    model(torch.ones(3)).sum().backward()
    optimizers[0].step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_everything_comes_back(parts, tmp_path):
    state = trained(*parts)
    history = [{}, {"valid/auc": 0.7, "valid/gauc": float("nan")}]
    progress = Progress(epoch=2, batch=7, loss_sum=0.1 + 0.2, best=0.7, best_epoch=1, history=history)
    last = Last(tmp_path, "key", *parts)
    last.save(27, progress)
    drawn = torch.rand(3)
    model = nn.Linear(3, 2)
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.5, fused=True)]
    assert repr(Last(tmp_path, "key", model, optimizers).load()) == repr(progress)
    assert torch.equal(torch.rand(3), drawn)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert optimizers[0].param_groups[0]["lr"] == 0.1
    assert torch.equal(optimizers[0].state[model.weight]["exp_avg"], parts[1][0].state[parts[0].weight]["exp_avg"])
    last.remove()
    assert not list(tmp_path.iterdir())


def test_checkpoints_of_another_configuration_are_cleared_away(parts, tmp_path):
    Last(tmp_path, "key", *parts).save(2, Progress(epoch=2))
    other = Last(tmp_path, "other", *parts)
    assert other.load() is None
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_version_of_the_code_is_named(parts, tmp_path):
    Last(tmp_path, "key", *parts).save(0, Progress())
    other = nn.Linear(3, 2, bias=False)
    with pytest.raises(InputError, match=r"bias is in the checkpoint alone; .* another version.*--force"):
        Last(tmp_path, "key", other, [torch.optim.Adam(other.parameters())]).load()


def test_a_damaged_checkpoint_is_as_none(parts, tmp_path):
    last = Last(tmp_path, "key", *parts)
    last.save(1, Progress())
    (file,) = last.path.glob("*/*.distcp")
    file.write_bytes(file.read_bytes()[:-9])
    again = Last(tmp_path, "key", *parts)
    with pytest.warns(RuntimeWarning, match="the run begins again"):
        assert again.load() is None
    again.save(1, Progress())
    again.save(2, Progress(epoch=1))
    (file,) = again.path.glob("*2/*.distcp")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.warns(RuntimeWarning, match="is damaged"):
        assert Last(tmp_path, "key", *parts).load() == Progress()


@pytest.mark.parametrize("content", [b"", b"nonsense", "half", None])
def test_broken_or_missing_best_weights_are_named(parts, tmp_path, content):
    best = Best(tmp_path, "key")
    best.save(parts[0])
    assert best.exists()
    assert not Best(tmp_path, "other").exists()
    whole = best.path.read_bytes()
    best.path.write_bytes(whole[: len(whole) // 2] if content == "half" else content or b"")
    if content is None:
        best.path.unlink()
    with pytest.raises(InputError, match=r"best\.safetensors is (missing|damaged).*--force"):
        best.load(parts[0])
    assert not best.exists()


def test_best_weights_of_an_earlier_version_are_read(parts, tmp_path):
    torch.save({"key": "key", "model": parts[0].state_dict()}, tmp_path / "best.pt")
    other = nn.Linear(3, 2)
    Best(tmp_path, "key").load(other)
    assert torch.equal(other.weight, parts[0].weight)


def test_what_a_killed_process_had_begun_to_write_is_removed(tmp_path: Path) -> None:
    for name in (".best.safetensors.123-abc.part", ".other.123-abc.part"):
        (tmp_path / name).write_bytes(b"half")
    Best(tmp_path, "key").save(nn.Linear(2, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.123-abc.part", "best.safetensors"]
