"""The command `embcomp` itself; its parts are tested beside them."""

import json
import runpy
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import embcomp
from embcomp import cli
from embcomp.extras import DISTRIBUTION, install

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    return int(left.value.code or 0)


@pytest.fixture
def only_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an installation without extras."""
    for name in ("typer", "rich", "torchrec", "polars", "numpy", "uvicorn"):
        monkeypatch.setitem(sys.modules, name, None)
    for module, *_ in cli._PARTS.values():
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.delitem(sys.modules, "embcomp.torchrec", raising=False)


@pytest.mark.usefixtures("only_torch")
def test_help_and_version_need_torch_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"embcomp {embcomp.__version__}\n"
    assert run("--help") == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said and f"(extra {extra})" in said for name, (_, extra, _) in cli._PARTS.items())
    assert run() == 2
    assert capsys.readouterr().err == said
    assert run("plam") == 2
    assert "invalid choice: 'plam'" in capsys.readouterr().err


def test_import_and_help_load_nothing_of_size_beside_torch() -> None:
    """Not even a part of torch that `import torch` leaves for later, as DTensor and export, which take seconds."""
    script = """
import contextlib, io, json, sys, torch
before = set(sys.modules)
import embcomp, embcomp.cli
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    embcomp.cli.main(["--help"])
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    loaded = json.loads(said.stdout)
    foreign = [name for name in loaded if name.split(".")[0] not in {"embcomp", *sys.stdlib_module_names}]
    assert foreign == []
    assert "embcomp.torchrec" not in loaded
    assert not {"embcomp.sdim", "embcomp.retrieval", "asyncio", "multiprocessing"} & {*loaded}


@pytest.mark.parametrize("on", [True, False])
def test_import_collects_no_garbage_and_leaves_the_collector_as_it_was(on: bool) -> None:
    """A collection would search all objects of torch: as long as the rest of the import takes."""
    script = f"""
import gc, torch
runs = []
if not {on}:
    gc.disable()
gc.callbacks.append(lambda phase, info: runs.append(phase == "start"))
import embcomp
gc.callbacks.clear()
print(sum(runs) <= 1, gc.isenabled())  # once at the end, of what is new
try:
    with embcomp.collector.paused():
        raise ValueError(gc.isenabled())
except ValueError as error:
    print(error, gc.isenabled())
"""
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert said.stdout.splitlines() == [f"True {on}", f"False {on}"]


@pytest.mark.usefixtures("only_torch")
@pytest.mark.parametrize("name", cli._PARTS)
def test_a_command_without_its_extra_names_it_once(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(name, "--help") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"embcomp {name}: ")
    assert said.count(install(cli._PARTS[name][1])) == 1


@pytest.mark.parametrize("name", cli._PARTS)
def test_each_command_shows_its_own_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(name, "--help") == 0
    assert f"embcomp {name} " in capsys.readouterr().out


def test_python_m_embcomp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["__main__.py", "--version"])
    monkeypatch.delitem(sys.modules, "embcomp.__main__", raising=False)  # of tests that import all modules
    with pytest.raises(SystemExit):
        runpy.run_module("embcomp", run_name="__main__")
    assert capsys.readouterr().out == f"embcomp {embcomp.__version__}\n"


def test_names_of_the_project() -> None:
    """The extras that messages name are there, under the name that the distribution has."""
    assert PROJECT["name"] == DISTRIBUTION
    assert {extra for _, extra, _ in cli._PARTS.values()} <= set(PROJECT["optional-dependencies"])
    module, _, function = PROJECT["scripts"]["embcomp"].partition(":")
    assert getattr(import_module(module), function) is cli.main
