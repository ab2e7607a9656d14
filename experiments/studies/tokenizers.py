"""`python -m experiments tokenizers`: the quality of tokenizers on real content vectors, with one result file per run.

Each row of tokenizers.toml writes `<results>/semantic-tokenizers/<data set>/<run>.json`; runs whose file holds the same
configuration are skipped.
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from data.registry import root_folder
from embcomp import semantic_ids
from embcomp.semantic_ids.content import Content
from embcomp.semantic_ids.tokenizers.quality import Quality
from experiments.errors import InputError
from experiments.studies import study
from experiments.tasks.text import vectors_file

CONFIG = Path(__file__).parent / "tokenizers.toml"
EXPERIMENT = "semantic-tokenizers"


@dataclass(frozen=True)
class Run:
    """A tokenizer on one data set with one seed."""

    dataset: str
    name: str
    label: str
    levels: int
    codebook_size: int
    options: dict[str, Any]
    seed: int

    @property
    def file(self) -> str:
        plain = "".join(c if c.isalnum() else "-" for c in self.label).replace("--", "-")
        return f"{self.dataset}/{plain}-seed{self.seed}.json"


def runs(path: Path = CONFIG) -> Iterator[Run]:
    """Yield all runs of the file; seeds outermost, so that the first runs already cover all settings."""
    values = tomllib.loads(path.read_text())
    for seed in values["seeds"]:
        for dataset in values["datasets"]:
            for entry in values["tokenizers"]:
                yield Run(
                    dataset=dataset,
                    name=entry["name"],
                    label=entry.get("label", entry["name"]),
                    levels=values["levels"],
                    codebook_size=values["codebook_size"],
                    options=entry.get("options", {}),
                    seed=seed,
                )


def content_of(dataset: str) -> Tensor | None:
    """Return the content vectors of the items, or None if they have not been made."""
    if dataset == "globo":
        path = root_folder() / "globo" / "article_embeddings.npz"
        if not path.is_file():
            raise InputError(f"no file {path}")
        with np.load(path) as arrays:
            return torch.from_numpy(arrays["embedding"])
    path = vectors_file(dataset)
    if not path.is_file():
        return None
    with np.load(path) as arrays:
        return torch.from_numpy(arrays["vectors"])


def run_all(results: Path, console: Console, force: bool = False) -> None:
    """Fit the runs that are not current, and write their files."""
    lacking: set[str] = set()
    for run in runs():
        path = results / EXPERIMENT / run.file
        config = asdict(run)
        if not force and study.is_current(path, config):
            continue
        content = content_of(run.dataset)
        if content is None and run.dataset in lacking:
            continue
        if content is None:
            lacking.add(run.dataset)
            console.print(f"no vectors of {run.dataset}: `python -m experiments text {run.dataset}` makes them")
            continue
        begin = time.process_time()
        quality = measure(run, content)
        seconds = time.process_time() - begin
        values = {
            "experiment": EXPERIMENT,
            "items": len(content),
            "quality": {key: _finite(value) for key, value in asdict(quality).items()},
            "cpu_seconds": round(seconds, 1),
        }
        study.write(path, values, config)
        console.print(f"{run.file}: relative error {quality.relative_error:.4f}, unique {quality.unique:.4f}")


def measure(run: Run, content: Tensor) -> Quality:
    """Fit, encode and evaluate."""
    if run.name != "vector-quantize-pytorch":
        kind = semantic_ids.Tokenizer.by_name[run.name]
        tokenizer = kind(run.levels, run.codebook_size, seed=run.seed, **run.options)  # type: ignore[call-arg]
        return tokenizer.fit(content).quality(None, content)
    vq, codes = _residual_vq(run, content)
    # Judged by the same function: its codebooks in the place of a fitted tokenizer's.
    judge = semantic_ids.ResidualKMeans(run.levels, run.codebook_size)
    judge.width, judge.tensors = content.shape[1], {"codebooks": vq.codebooks.detach().float()}
    return judge.quality(codes, Content(content))


def _residual_vq(run: Run, content: Tensor, steps: int = 50) -> tuple[Any, Tensor]:
    from vector_quantize_pytorch import ResidualVQ

    torch.manual_seed(run.seed)
    vq = ResidualVQ(
        dim=content.shape[1], num_quantizers=run.levels, codebook_size=run.codebook_size, **run.options
    ).train()
    with torch.no_grad():
        for _ in range(steps):
            vq(content)
        _, codes, _ = vq.eval()(content)
    return vq, codes


def write_markdown(results: Path, folder: Path) -> Path:
    """Write one table: means over seeds, with the lowest and highest in brackets if they differ."""
    files_of: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for values in study.read(results, EXPERIMENT):
        files_of.setdefault((values["config"]["dataset"], values["config"]["label"]), []).append(values)
    rows = []
    for (dataset, label), files in sorted(files_of.items()):
        qualities = [values["quality"] for values in files]
        rows.append([
            dataset,
            label,
            str(len(files)),
            _spread([q["relative_error"] for q in qualities], 4),
            _spread([q["unique"] for q in qualities], 4),
            _spread([min(q["coverage"]) for q in qualities], 3),
            _spread([values["cpu_seconds"] for values in files], 0),
        ])  # fmt: skip
    header = [
        "data", "tokenizer", "seeds", "relative error", "unique code tuples", "lowest coverage of a level",
        "CPU seconds",
    ]  # fmt: skip
    lines = [
        "Tokenizers with 3 × 256 codes on real content vectors, written by `python -m experiments tokenizers`. "
        "Relative error: Σ|x − decode(codes)|² / Σ|x|². Mean over seeds, [lowest, highest].",
        "",
        *study.table(header, "l" * len(header), rows),
    ]
    return study.write_page(folder, EXPERIMENT, lines)


def _spread(values: list[float], digits: int) -> str:
    mean, low, high = sum(values) / len(values), min(values), max(values)
    return f"{mean:.{digits}f}" + (f" [{low:.{digits}f}, {high:.{digits}f}]" if high > low else "")


def _finite(value: Any) -> Any:
    """Replace NaN, which JSON does not have, by null: a cosine without pairs."""
    if isinstance(value, tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and value != value else value
