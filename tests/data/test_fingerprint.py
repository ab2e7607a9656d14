"""Checksums of files: of the content, whatever size and times say."""

import json
import os
from pathlib import Path

import pytest

from data import fingerprint as module
from data.fingerprint import fingerprint, fingerprints


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_RACY", -(10**18))  # every file is old enough
    return tmp_path / "cache" / "embcomp" / "fingerprints"


def test_content_alone_counts(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"abc")
    other.write_bytes(b"abc")
    first = fingerprint(one)
    assert len(first) == 32
    assert fingerprint(other) == first
    os.utime(one, ns=(0, 0))
    assert fingerprint(one) == first
    # As `cp -p` leaves it: another content of the same size, in place, with the old times.
    state = one.stat()
    with one.open("r+b") as file:
        file.write(b"abd")
    os.utime(one, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (one.stat().st_size, one.stat().st_mtime_ns, one.stat().st_ino) == (3, state.st_mtime_ns, state.st_ino)
    assert fingerprint(one) != first


def test_an_untouched_file_is_not_read_again(tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    found = fingerprint(path)
    (note,) = notes.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(module.hashlib, "file_digest", lambda *args: pytest.fail("read again"))
        assert fingerprint(path) == found
    for damage in ("", "{}", "[1]", json.dumps([1, 2, 3, 4, 5, "x"])):
        note.write_text(damage)
        assert fingerprint(path) == found


def test_a_file_that_may_still_change_is_not_noted(
    tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RACY", 10**18)
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    fingerprint(path)
    assert not notes.exists()


def test_names_are_relative_to_the_folder_of_all(tmp_path: Path) -> None:
    files = [tmp_path / "a" / "1", tmp_path / "b" / "1"]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(b"x")
    assert [name for name, _ in fingerprints(files)] == ["a/1", "b/1"]
    assert [name for name, _ in fingerprints(files[:1])] == ["1"]
    assert fingerprints([]) == []
