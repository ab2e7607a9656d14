"""The cases of nightly.toml, one for each method, and their result files."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from data.registry import root_folder
from data.schema import DataError
from experiments.errors import InputError
from experiments.studies import study
from experiments.studies.nightly.clicks import read
from experiments.studies.nightly.nights import Chain, K

CONFIG = Path(__file__).parent / "nightly.toml"
EXPERIMENT = "nightly"


def run_all(results: Path, out: Path, console: Console, path: Path = CONFIG, pattern: str = "") -> None:
    """Train all nights that no result file holds yet; the file is written again after each night.

    Args:
        results: the folder of result files.
        out: the folder of models and of what they publish.
        console: the console that prints each night.
        path: the settings.
        pattern: only methods whose label contains it.

    Raises:
        InputError: the data are missing.
    """
    torch.set_num_threads(1)
    values = tomllib.loads(path.read_text())
    data = values["data"]
    clicks = None
    for case in _cases(values):
        label, seed = case["label"], case["seed"]
        file = results / EXPERIMENT / "globo" / f"{_plain(label)}-seed{seed}.json"
        nights: list[dict[str, Any]] = study.held(file)["nights"] if study.is_current(file, case) else []
        if pattern not in label or len(nights) == data["days"]:
            continue
        if clicks is None:
            clicks = read(_folder(), **{name: data[name] for name in ("readers", "length", "held_out", "seed")})
        own = out / file.stem
        own.mkdir(parents=True, exist_ok=True)
        chain = Chain(clicks, case, own)
        if nights and not chain.holds(len(nights) - 1):
            nights = []
        for night in chain.nights(len(nights)):
            nights.append(night)
            study.write(file, {"experiment": EXPERIMENT, "label": label, "seed": seed, "nights": nights}, case)
            said = ", ".join(f"{name} {night[name]:.4f}" for name in ("chain", "cold", "served"))
            console.print(f"{label}, night {len(nights)}: R@{K} {said}", highlight=False)


def _folder() -> Path:
    try:
        folder = root_folder() / "globo"
    except DataError as error:
        raise InputError(str(error)) from error
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    return folder


def _cases(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for seed in values["seeds"]:
        for method in values["methods"]:
            settings = {name: value for name, value in method.items() if name != "label"}
            yield {
                "label": method["label"], "method": settings, "seed": seed,
                "data": values["data"], "training": values["training"],
            }  # fmt: skip


def _plain(label: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in label)
