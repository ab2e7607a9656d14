"""What the user gives beside the model: files, states, positions."""

import json

import numpy as np
import pytest
import torch

from embcomp.checkpoints import Damaged, Progress
from embcomp.checkpoints.folder import write_manifest
from embcomp.manifest import checksums
from tests.checkpoints.trainings import Training


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
