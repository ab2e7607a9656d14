"""What is damaged, foreign or half written does no harm."""

import errno
import json
import os
import pickle
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from embcomp.checkpoints import Checkpoints, Damaged, Progress
from embcomp.checkpoints.folder import write_manifest
from embcomp.manifest import checksums
from tests.checkpoints.trainings import Model, Training, damage, save_and_wait

FILES = [".metadata", "__0_0.distcp", "rank-0.safetensors", "parts/scheduler.safetensors", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["flipped", "truncated", "gone"])
def test_a_damaged_file_is_named_and_the_one_before_is_used(tmp_path, name, how):
    training = Training(tmp_path, keep=3)
    for step in (1, 2, 3):
        training.steps(1)
        training.checkpoints.save(step)
    path = tmp_path / "step-0000000003" / name
    if how == "flipped":
        damage(path)
    elif how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.unlink()
    (tmp_path / "step-0000000002" / "manifest.json").write_text("{}")
    other = Training(tmp_path, keep=3)
    with pytest.warns(RuntimeWarning, match="step 1 is loaded instead") as warned:
        assert other.checkpoints.load() == Progress(1, {})
    assert [str(path) in str(warning.message) for warning in warned] == [True, False]
    with pytest.raises(Damaged, match=str(path)):
        other.checkpoints.load(step=3)
    other.checkpoints.save(2)  # the damaged ones go once a sound one is in their place
    assert other.checkpoints.steps() == [2, 1]


def test_no_sound_checkpoint_is_an_error_not_a_new_training(tmp_path):
    training = Training(tmp_path)
    training.checkpoints.save(1)
    damage(tmp_path / "step-0000000001" / "__0_0.distcp")
    with pytest.raises(Damaged, match=r"no checkpoint in .* is intact: .*__0_0\.distcp is damaged"):
        training.checkpoints.load()


class Attack:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["metadata", "state of the metadata", "bytes", "another folder"])
def test_a_strangers_checkpoint_runs_no_code(tmp_path, where):
    """Whoever makes a folder makes its checksums fit, too."""
    training = Training(tmp_path / "run")
    if where == "bytes":
        training.model.register_buffer("more", torch.zeros(1))
        training.model.state_dict = lambda *_: {**Model().state_dict(), "head._extra_state": Attack(tmp_path / "made")}
    training.checkpoints.save(1)
    folder = tmp_path / "run" / "step-0000000001"
    path = folder / ".metadata"
    found = pickle.loads(path.read_bytes())
    if where == "metadata":
        found = Attack(tmp_path / "made")
    elif where == "state of the metadata":
        found.planner_data = {"a": Attack(tmp_path / "made")}
    elif where == "another folder":
        for info in found.storage_data.values():
            info.relative_path = f"../{folder.name}/{info.relative_path}"
    path.write_bytes(pickle.dumps(found))
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["checksum"]
    write_manifest(folder, {**manifest, "files": checksums(folder, manifest["files"])})
    with pytest.raises(
        (ValueError, pickle.UnpicklingError), match=r"asks for posix\.mkdir|names the file '\.\./|posix"
    ):
        training.checkpoints.load()
    assert not (tmp_path / "made").exists()


class Full:
    """A disk that is full once `left` bytes are written: wraps the streams of torch.distributed.checkpoint."""

    def __init__(self, stream, left: int) -> None:
        self.stream, self.left = stream, left

    def write(self, data) -> int:
        self.left -= len(memoryview(data).cast("B"))
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.stream.write(data)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["at once", "in the background"])
@pytest.mark.parametrize("left", [0, 3000, 8000])
def test_a_full_disk_leaves_the_checkpoints_before(tmp_path, monkeypatch, left, asynchronous):
    training = Training(tmp_path)
    training.checkpoints.save(1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    create = FileSystemWriter(tmp_path).fs.create_stream.__func__

    @contextmanager
    def limited(self, path, mode):
        with create(self, path, mode) as stream:
            yield Full(stream, left) if mode == "wb" else stream

    monkeypatch.setattr("torch.distributed.checkpoint.filesystem.FileSystem.create_stream", limited)
    with pytest.raises(OSError, match=r"No space left on device: step 2 was not saved .* the steps \[1\]") as raised:
        save_and_wait(training.checkpoints, 2, asynchronous)
    assert raised.value.errno == errno.ENOSPC
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000001"]
    monkeypatch.undo()
    training.checkpoints.save(2)
    assert training.checkpoints.steps() == [2, 1]


@pytest.mark.parametrize("stop", ["write_manifest", "os.rename"])
def test_a_save_that_is_killed_leaves_the_one_before(tmp_path, monkeypatch, stop):
    """A child process dies by SIGKILL just before the last steps of a save; the next save clears up."""
    training = Training(tmp_path)
    training.steps(1)
    training.checkpoints.save(1)
    expected = {name: value.clone() for name, value in training.model.state_dict().items()}
    child = os.fork()
    if child == 0:
        module = "embcomp.checkpoints.checkpoints.write_manifest" if stop == "write_manifest" else stop
        monkeypatch.setattr(module, lambda *_: os.kill(os.getpid(), 9))
        training.steps(1)
        training.checkpoints.save(2)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 9
    assert [path.name for path in tmp_path.glob(".*")] != []
    other = Training(tmp_path)
    assert other.checkpoints.load() == Progress(1, {})
    assert all(torch.equal(value, expected[name]) for name, value in other.model.state_dict().items())
    other.checkpoints.save(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000000001", "step-0000000002"]


def test_replacing_a_step_never_leaves_none(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, Model(), keep=1)
    checkpoints.save(1, {"try": 1})
    seen = []
    rename = os.rename

    def watched(old, new):
        rename(old, new)
        if Path(new).parent == tmp_path:  # not one of torch's own, inside the checkpoint
            seen.append(Checkpoints(tmp_path, Model()).load())

    monkeypatch.setattr(os, "rename", watched)
    checkpoints.save(1, {"try": 2})
    assert [progress.position["try"] for progress in seen] == [1, 2, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000001"]
