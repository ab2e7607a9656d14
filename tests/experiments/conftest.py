"""A small experiment on synthetic clicks, and a cache of its own for their encoded rows."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.config import ExperimentConfig, RunConfig
from experiments.load import check

SMALL: dict[str, Any] = {
    "experiment": "small",
    "seeds": [0, 1],
    "data": {
        "name": "synthetic",
        "options": {"num_rows": 6000, "num_users": 300, "num_items": 200, "num_communities": 5},
    },
    "model": {"name": "DCN", "embedding_dim": 8, "options": {"cross_layers": 1, "hidden": [16]}},
    "optimizer": {"name": "Adam", "lr": 0.01},
    "training": {"batch_size": 256, "epochs": 2},
    "methods": [
        {"method": "Full"},
        {"method": "HashingTrick", "share": [0.5, 0.1]},
        {"method": "FrequencyHash", "share": 0.2, "seeds": [0]},
    ],
}


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def small() -> dict[str, Any]:
    """The values of a TOML file; a test may change them."""
    return copy.deepcopy(SMALL)


@pytest.fixture
def make_run(small: dict[str, Any]) -> Callable[..., RunConfig]:
    """The first run of the small experiment, with other values in its sections: make_run(training={"epochs": 1})."""

    def make(**sections: Any) -> RunConfig:
        for name, values in sections.items():
            small[name] = {**small[name], **values} if isinstance(values, dict) and name in small else values
        return next(check(small, "small.toml").runs())

    return make


@pytest.fixture
def experiment(small: dict[str, Any]) -> ExperimentConfig:
    return check(small, "small.toml")


@pytest.fixture
def toml(tmp_path: Path, small: dict[str, Any]) -> Callable[..., Path]:
    """Writes the small experiment as TOML; `lines` are put before it."""

    def write(name: str = "small.toml", values: dict[str, Any] | None = None, lines: str = "") -> Path:
        path = tmp_path / name
        path.write_text(lines + _dump(values or small))
        return path

    return write


def _dump(values: dict[str, Any]) -> str:
    return "\n".join(f"{key} = {_value(value)}" for key, value in values.items()) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        return f'"{value}"'
    return str(value).lower() if isinstance(value, bool) else repr(value)
