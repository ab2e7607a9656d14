"""Files are whole or absent, open to whom the umask says; values come back from them as they were."""

import collections
import contextlib
import errno
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embcomp import artifact, nested
from embcomp.files import Damaged, replacing, write


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_asks_for(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        artifact.save(tmp_path / "map", "map", {}, {"rows": torch.arange(3)})
    finally:
        os.umask(before)
    assert (tmp_path / "map").stat().st_mode & 0o777 == mode


def test_a_write_that_fails_names_the_file_and_leaves_the_old_one(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "more" / "file"
    write(path, b"old")  # makes the folder

    def fails(file) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"No space left on device: '.*more/file'") as caught:
        write(path, fails)
    assert caught.value.errno == errno.ENOSPC
    folder = contextlib.ExitStack()
    part = folder.enter_context(replacing(path))
    part.mkdir()
    (part / "inner").write_bytes(b"half")
    with pytest.raises(NotADirectoryError, match="more/file"):  # a folder takes the place of no file
        folder.close()
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["file"]
    write(path, [b"n", memoryview(b"ew")])
    assert path.read_bytes() == b"new"


def test_any_reader_of_safetensors_opens_an_artifact(tmp_path: Path) -> None:
    dtypes = list(artifact._DTYPES)
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in dtypes}
    tensors |= {"empty": torch.empty(0, 4), "number": torch.tensor(2.5), "strided": torch.arange(12).view(3, 4).T}
    artifact.save(tmp_path / "file", "kind", {"a": [1, None]}, tensors)
    theirs = safetensors.torch.load_file(tmp_path / "file")
    header, ours = artifact.load(tmp_path / "file", "kind")
    assert header == {"a": [1, None]}
    assert tensors.keys() == theirs.keys() == ours.keys()
    for name, tensor in tensors.items():
        for found in (theirs[name], ours[name]):
            assert found.dtype == tensor.dtype
            assert torch.equal(found.to(torch.complex128), tensor.to(torch.complex128))
    with pytest.raises(ValueError, match="file holds a kind, not a map"):
        artifact.load(tmp_path / "file", "map")


NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.binary(max_size=5)
KEYS = st.integers() | st.text(max_size=3) | st.sampled_from(["$dict", "$tensor"]) | st.tuples(st.integers(), st.text())
LEAVES = NUMBERS | st.text() | st.sampled_from([
    np.float32(0.1), np.int64(2**62), np.bool_(True), np.float16("nan"), torch.float16, torch.Size([2, 3]),
    torch.device("cpu"), collections.Counter({3: 1}), collections.OrderedDict(b=1, a=2), {1, 2}, frozenset("a"),
])  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=3),
)


@settings(deadline=None, max_examples=30)
@given(value=VALUES)
def test_values_come_back_as_they_were(value) -> None:
    structure, tensors = nested.flatten(value)
    assert repr(nested.unflatten(structure, tensors)) == repr(value)


def test_tensors_and_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    arrays = [np.arange(6, dtype=np.int16).reshape(2, 3).T, np.empty((0, 3)), np.array(["ab", "c"]), np.array(1.5)]
    nested.save(tmp_path / "file", "k", {"arrays": arrays, 1: torch.tensor([1.0, float("nan")], dtype=torch.bfloat16)})
    found = nested.load(tmp_path / "file", "k")
    assert repr(found) == repr({"arrays": arrays, 1: torch.tensor([1.0, float("nan")], dtype=torch.bfloat16)})
    assert found["arrays"][0].flags.writeable


def test_what_is_no_value_is_refused_by_its_place() -> None:
    endless: list = []
    endless.append({"a": endless})
    for value, text in [
        ({"a": [lambda: 0]}, r"value\['a'\]\[0\] is a builtins\.function"),
        ({"a": np.array([None])}, r"value\['a'\] is a NumPy array of object"),
        (endless, r"value\[0\]\['a'\] holds itself"),
    ]:
        with pytest.raises(TypeError, match=text):
            nested.flatten(value)
    with pytest.raises(ValueError, match="is not a value that embcomp writes"):
        nested.unflatten({"$eval": "1"}, {})


def test_a_torch_file_with_code_or_damage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({"a": torch.arange(3)}, path)
    assert nested.load(path, "any")["a"].tolist() == [0, 1, 2]
    whole = path.read_bytes()
    at = whole.index(torch.arange(3).numpy().tobytes())
    path.write_bytes(whole[:at] + b"\x01" + whole[at + 1 :])  # torch.load itself answers 1, 1, 2
    with pytest.raises(Damaged, match=r"old\.pt is damaged: the checksum of .*data/0"):
        nested.load(path, "any")
    torch.save(print, path)
    with pytest.raises(Damaged, match=r"old\.pt is damaged, or holds more than values"):
        nested.load(path, "any")
