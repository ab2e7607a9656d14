"""One process: what is saved comes back, exactly; what is damaged, foreign or half written does no harm."""

import errno
import json
import os
import pickle
import random
import threading
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter

import embcomp
from embcomp.checkpoints import Checkpoints, Damaged, Progress
from embcomp.checkpoints.folder import write_manifest
from embcomp.manifest import checksums
from embcomp.sdim import SDIM

COUNTS = torch.tensor([5.0, 0, 9, 1, 3, 3])


class Model(nn.Module):
    """Hashed users, films with a map, a dense part with dropout."""

    def __init__(self, rows: int = 9, counts: torch.Tensor = COUNTS, width: int = 16) -> None:
        super().__init__()
        self.users, self.films = nn.Embedding(100, 8), nn.Embedding(6, 8)
        methods = {"users": embcomp.DoubleHash(rows=rows), "films": embcomp.FrequencyHash(rows=4, counts=counts)}
        embcomp.compress_(self, methods)
        self.head = nn.Sequential(nn.Linear(16, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 1))

    def forward(self, users: torch.Tensor, films: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.users(users), self.films(films)], dim=1)).mean()


class Training:
    """A model, its optimizer and scheduler, and batches drawn at random."""

    def __init__(self, folder: Path, seed: int = 0, **settings) -> None:
        torch.manual_seed(seed)
        self.model = Model(**settings.pop("model", {}))
        sparse, dense = [self.model.users, self.model.films], self.model.head
        self.optimizer = torch.optim.Adam(
            [{"params": nn.ModuleList(sparse).parameters(), "lr": 0.1}, {"params": dense.parameters(), "lr": 0.01}]
        )
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=2, gamma=0.5)
        self.parts = {"scheduler": self.scheduler, **settings.pop("parts", {})}
        self.checkpoints = Checkpoints(folder, self.model, [self.optimizer], parts=self.parts, **settings)

    def steps(self, number: int) -> list[float]:
        losses = []
        for _ in range(number):
            self.optimizer.zero_grad()
            users = torch.randint(100, (7,)) + random.randrange(0, 1)
            loss = self.model(users, torch.from_numpy(np.random.randint(0, 6, 7)))
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.item())
        return losses


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def save_and_wait(checkpoints: Checkpoints, step: int, asynchronous: bool) -> None:
    checkpoints.save(step, asynchronous=asynchronous)
    checkpoints.wait()


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


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


def test_a_new_training_does_not_go_over_another(tmp_path):
    Training(tmp_path).checkpoints.save(5)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="holds step 5, and step 5 is to be saved: load it first"):
        Training(tmp_path).checkpoints.save(5)
    assert sorted(tmp_path.rglob("*")) == before


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
    with pytest.raises(Damaged, match=r"no checkpoint in .* is sound: .*__0_0\.distcp is damaged"):
        training.checkpoints.load()


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


def test_parts_come_back(tmp_path):
    tokenizer, note = tmp_path / "films", tmp_path / "map"
    (tokenizer / "more").mkdir(parents=True)
    (tokenizer / "tokenizer.json").write_text("{}")
    (tokenizer / "more" / "codes").write_bytes(b"\x00\xff")
    note.write_bytes(b"rows")
    parts = {"tokenizer": tokenizer, "map": str(note), "key": b"123"}
    Training(tmp_path / "run", parts=parts).checkpoints.save(1)
    assert Training(tmp_path / "run", parts=parts).checkpoints.load() == Progress(1, {})
    (tokenizer / "more" / "codes").rename(tmp_path / "codes")
    with pytest.raises(ValueError, match=r"part 'tokenizer': .*more/codes is not what .*parts/tokenizer"):
        Training(tmp_path / "run", parts=parts).checkpoints.load()
    (tokenizer / "tokenizer.json").unlink()
    (tokenizer / "more").rmdir()
    tokenizer.rmdir()
    note.unlink()
    Training(tmp_path / "run", parts=parts).checkpoints.load()
    assert (tokenizer / "more" / "codes").read_bytes() == b"\x00\xff"
    assert note.read_bytes() == b"rows"
    with pytest.raises(ValueError, match="part 'key' is not what"):
        Training(tmp_path / "run", parts={**parts, "key": b"124"}).checkpoints.load()
    note.unlink()
    with pytest.raises(FileNotFoundError, match=rf"No such file or directory \({note}\): step 2 was not saved"):
        Training(tmp_path / "new", parts=parts).checkpoints.save(2)
    with pytest.raises(ValueError, match=r"holds no part 'other' of this kind; it holds \['key', 'map', 'scheduler'"):
        Training(tmp_path / "run", parts={"other": b""}).checkpoints.load()


class Anything:
    """A part with any state."""

    def __init__(self, value) -> None:
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state) -> None:
        self.value = state["value"]


def test_states_and_positions_come_back_exactly(tmp_path):
    value = {3: np.float32(0.1), (1, "a"): [np.int64(7), {2, 3}], "$key": (None, float("nan")), "rows": torch.arange(3)}
    position = {"seen": {5: (1, 2)}, "rate": np.float64(0.1), "$at": 1}
    Training(tmp_path, parts={"any": Anything(value)}).checkpoints.save(1, position)
    part = Anything(None)
    milestones = Training(tmp_path, parts={"any": part}).checkpoints.load()
    assert milestones == Progress(1, position)
    assert repr(part.value) == repr(value)
    assert type(milestones.position["rate"]) is np.float64


def test_a_state_that_is_no_value_is_refused_by_save(tmp_path):
    with pytest.raises(
        TypeError, match=r"the state of part 'any'\['value'\]\[0\] is a .*Anything, which cannot be saved"
    ):
        Training(tmp_path, parts={"any": Anything([Anything(1)])}).checkpoints.save(1)
    assert not any(tmp_path.iterdir())


def test_nothing_changes_where_a_part_cannot_be_read_or_refuses(tmp_path):
    class Refuses(Anything):
        def load_state_dict(self, state) -> None:
            super().load_state_dict(state)
            if self.value == "new":
                raise RuntimeError("no")

    training = Training(tmp_path, parts={"refuses": Refuses("new")})
    training.steps(3)
    training.checkpoints.save(3)
    other = Training(tmp_path, seed=5, parts={"refuses": Refuses("old")})
    before, drawn = {name: value.clone() for name, value in other.model.state_dict().items()}, torch.get_rng_state()
    with pytest.raises(ValueError, match="part 'refuses' does not take the state that was saved: no"):
        other.checkpoints.load()
    saved = tmp_path / "step-0000000003"
    manifest = json.loads((saved / "manifest.json").read_text())
    torch.save({"value": Anything}, saved / "parts" / "refuses.pt")  # code, as embcomp 0.1 could come to write it
    (saved / "parts" / "refuses.safetensors").unlink()
    values = {name: value for name, value in manifest.items() if name not in ("checksum", "files")}
    files = {name: value for name, value in manifest["files"].items() if "refuses" not in name}
    write_manifest(saved, {**values, "files": {**files, **checksums(saved, ["parts/refuses.pt"])}})
    with pytest.raises(Damaged, match=r"refuses\.pt is damaged, or holds more than values"):
        other.checkpoints.load()
    assert all(torch.equal(value, before[name]) for name, value in other.model.state_dict().items())
    assert other.parts["refuses"].value == "old"
    assert other.scheduler.last_epoch == 0
    assert torch.equal(torch.get_rng_state(), drawn)


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
