import ctypes
import logging
import re
import shutil
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import embcomp
from embcomp.ops import native
from embcomp.ops.hashing import hash_rows, hash_rows_reference

COMPILER = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As in a process that has compiled nothing yet, on a machine without a cache."""
    monkeypatch.setenv("EMBCOMP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EMBCOMP_NATIVE", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def script(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def assert_torch_forms_serve(reason: str) -> None:
    """One warning that says why, then silence and the same numbers."""
    with pytest.warns(RuntimeWarning, match=rf"(?s)embcomp: .*{reason}.*Slower torch code") as said:
        assert native.library() is None
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids, keys = torch.tensor([1, 2**62]), torch.tensor([5, -7])
        assert torch.equal(hash_rows(ids, keys, 100), hash_rows_reference(ids, keys, 100))
        module = embcomp.nn.CompressedEmbedding(10, 4, embcomp.DoubleHash(rows=3))
        assert module(torch.tensor([1, 9])).shape == (2, 4)
        with pytest.raises(IndexError, match="id 10"):
            module(torch.tensor([10]))


def test_it_can_be_switched_off_in_silence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMBCOMP_NATIVE", "0")
    assert native.library() is None
    assert not (tmp_path / "cache").exists()


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_torch_forms_serve("no C.. compiler found .set CXX")


@pytest.mark.parametrize("command", ["/nowhere/g++", "false"])
def test_a_compiler_that_does_not_run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", command)
    assert_torch_forms_serve(re.escape(f"{command} --version"))


def test_a_compiler_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = script(tmp_path / "c++", '[ "$1" = --version ] && exit 0', "echo no such header >&2", "exit 1")
    monkeypatch.setenv("CXX", str(broken))
    assert_torch_forms_serve("no such header")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_compiler_that_makes_rubbish(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = script(tmp_path / "c++", '[ "$1" = --version ] && exit 0', 'for last; do :; done; echo rubbish > "$last"')
    monkeypatch.setenv("CXX", str(broken))
    assert_torch_forms_serve("embcomp-")


@needs_compiler
def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EMBCOMP_CACHE", str(tmp_path / "file" / "cache"))
    assert_torch_forms_serve("cannot write .*set EMBCOMP_CACHE")


@needs_compiler
def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("EMBCOMP_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert_torch_forms_serve("home directory.*set EMBCOMP_CACHE")


@needs_compiler
def test_it_compiles_once_says_so_and_keeps_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    records: list[logging.LogRecord] = []
    monkeypatch.setattr(logging.getLogger("embcomp"), "handle", records.append)
    log = tmp_path / "log"
    counted = script(tmp_path / "c++", f'echo "$1" >> {log}', f'exec {COMPILER} "$@"')
    monkeypatch.setenv("CXX", f"{counted} -DANYTHING=1")
    monkeypatch.setenv("EMBCOMP_CXXFLAGS", "-O0")  # five seconds instead of twenty
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))  # the cache folder alone can be written
    library = native.build()
    assert list((tmp_path / "cache").iterdir()) == [library]
    assert hasattr(ctypes.CDLL(str(library)), "hash_rows")
    compiled = len(log.read_text().splitlines())
    assert native.build() == library
    (said,) = (record.getMessage() for record in records)
    assert said == f"embcomp compiles its C++ for this machine: once, some ten seconds, into {tmp_path / 'cache'}"
    assert len(log.read_text().splitlines()) == compiled + 1  # the version alone was asked for
    native.library()
    assert hash_rows(torch.tensor([3]), torch.tensor([4]), 9).shape == (1, 1)
