"""No file and no folder imports itself by way of others, be it inside a function or for types alone."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("data", "embcomp", "experiments", "recsys_models")


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_of(file): file for package in PACKAGES for file in (ROOT / package).rglob("*.py")}


def imported(file: Path) -> Iterator[str]:
    """The modules of `FILES` that a file imports anywhere; `from package import module` is of the module."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from names & FILES.keys() or {str(node.module)} & FILES.keys()


@cache
def all_arrows() -> dict[str, set[str]]:
    return {module: {to for to in imported(file) if to != module} for module, file in FILES.items()}


def circle(arrows: Mapping[str, set[str]]) -> list[str] | None:
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def within(folder: str) -> dict[str, set[str]]:
    """The arrows between what lies in a folder: a folder in it counts as one, with all that it holds."""

    def child(module: str) -> str:
        return ".".join(module.split(".")[: folder.count(".") + 2])

    inside = {module for module in FILES if module.startswith(f"{folder}.")}
    arrows: dict[str, set[str]] = {child(module): set() for module in inside}
    for module in inside:
        arrows[child(module)] |= {child(to) for to in all_arrows()[module] & inside} - {child(module)}
    return arrows


def test_no_circle_of_files():
    assert circle(all_arrows()) is None


@pytest.mark.parametrize("folder", sorted({module.rpartition(".")[0] or module for module in FILES}))
def test_no_circle_of_folders(folder):
    assert circle(within(folder)) is None


def test_circles_are_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) is not None
    assert {"experiments.config", "data.registry"} <= all_arrows()["experiments.tasks.kind"]
    assert "experiments.config" in within("experiments")["experiments.tasks"]
    assert "data.batch" in all_arrows()["data"]  # inside a function
