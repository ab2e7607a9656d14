"""`python -m experiments export`: the best weights of finished runs, exported and evaluated, one result file each.

`<results>/export/<experiment>/<run>.json` holds the metrics and bytes of the float32 model and of each exported
program, loaded from its file. Runs that are not finished are trained first.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.filesize import decimal
from torch import Tensor, nn

import embcomp
from experiments.config import RunConfig
from experiments.errors import InputError
from experiments.runs import results as files
from experiments.runs.runner import Settings, run_all, trained
from experiments.studies import study
from experiments.tasks.clicks import ClickTask
from experiments.training.checkpoint import Best

DTYPES = ("float16", "int8", "int4")
EXPERIMENT = "export"
FORMAT = 1  # raise it when results of the same configuration change: all files are then stale
_EXAMPLE_ROWS = 8


class Program(nn.Module):
    """An exported program with the call of the model that it was made from."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._program = [torch.export.load(path).module()]  # in a list: a program knows no train() and eval()

    def forward(self, dense: Tensor, sparse: Any) -> Tensor:
        lengths = sparse.lengths().view(len(sparse.keys()), -1)
        return self._program[0](dense, (sparse.values(), lengths))


def export_all(runs: Sequence[RunConfig], settings: Settings, console: Console, force: bool = False) -> int:
    """Export and evaluate the runs that are not current; return how many could not be trained.

    Raises:
        InputError: a run is a retrieval or behavior run.
    """
    others = [run.name for run in runs if run.kind != "clicks"]
    if others:
        raise InputError(f"{others[0]} is a retrieval or behavior run: only click-through models are exported here")
    pending = [run for run in runs if force or not _is_current(run, settings.results)]
    if len(pending) < len(runs):
        console.print(f"{len(runs) - len(pending)} of {len(runs)} exports are current")
    unfinished = [run for run in pending if not _is_trained(run, settings)]
    if unfinished:
        run_all(unfinished, settings, console)
    failed = 0
    for run in pending:
        if files.infeasible_path(run, settings.results).is_file():
            continue
        if not _is_trained(run, settings):
            failed += 1
            continue
        values = judge(run, settings)
        study.write(_path(run, settings.results), values, run)
        # AUC is not defined where the test split holds one class only.
        name = "auc" if "auc" in values["metrics"] else "logloss"
        whole = values["metrics"][name]
        losses = ", ".join(
            f"{exported['dtype']} {exported['metrics'][name] - whole:+.5f}" for exported in values["exported"]
        )
        said = f"{'AUC' if name == 'auc' else 'log-loss'} {whole:.4f}; {losses}"
        console.print(f"{run.experiment}/{run.name}: {said}", highlight=False)
    return failed


def judge(run: RunConfig, settings: Settings) -> dict[str, Any]:
    """Return the result file of one run whose training has ended."""
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    device = torch.device("cpu")
    torch.set_num_threads(settings.threads)
    task = ClickTask.prepare(run)
    built = task.model(device)
    Best(_folder(run, settings), files.checkpoint_key(run)).load(built.model)
    exported = []
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            path = Path(folder) / f"{dtype}.pt2"
            begin = time.process_time()
            report = embcomp.export(built.model, path, _example(task), dtype=dtype)
            exported.append({
                "dtype": dtype,
                "nbytes": report.bytes_exported,
                "file_nbytes": report.bytes_file,
                "needs": list(report.needs),
                "export_cpu_seconds": round(time.process_time() - begin, 1),
                "metrics": _metrics(task, Program(path), device),
            })  # fmt: skip
    return {
        "experiment": EXPERIMENT,
        "format": FORMAT,
        "of": run.experiment,
        "run": run.name,
        "dataset": run.data.name,
        "model": run.model.name,
        "label": run.label,
        "budget": dict([run.budget]) if run.budget else {},
        "seed": run.seed,
        "full_nbytes": task.full_nbytes,
        "nbytes": built.nbytes,
        "metrics": _metrics(task, built.model, device),
        "exported": exported,
    }


def _metrics(task: ClickTask, model: nn.Module, device: torch.device) -> dict[str, float]:
    metrics = task.evaluate(model, "test", device)
    return {name: metrics[f"test/{name}"] for name in ("auc", "logloss") if f"test/{name}" in metrics}


def _example(task: ClickTask) -> tuple[Any, Any]:
    """Return a small call, of which only dtypes and widths matter."""
    batch = next(iter(task.data.loader("test", _EXAMPLE_ROWS)))
    return batch.dense, batch.sparse


def _folder(run: RunConfig, settings: Settings) -> Path:
    return settings.work / "runs" / run.experiment / run.name


def _is_trained(run: RunConfig, settings: Settings) -> bool:
    return trained(run, settings) is not None


def _path(run: RunConfig, results: Path) -> Path:
    return results / EXPERIMENT / run.experiment / f"{run.name}.json"


def _is_current(run: RunConfig, results: Path) -> bool:
    values = study.held(_path(run, results))
    number, _, key = str(values.get("key")).rpartition("-")  # files of earlier releases hold "<format>-<key>"
    return int(number or values.get("format", 0)) == FORMAT and files.is_of({**values, "key": key}, run)


def write_markdown(results: Path, folder: Path) -> Path:
    """Write `export.md`: each method at its budget as trained and as exported; means over seeds."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for values in study.read(results, EXPERIMENT):
        budget = ", ".join(f"{kind} {value:,}" for kind, value in values["budget"].items())
        key = (values["dataset"], values["of"], values["model"], values["label"], budget)
        groups.setdefault(key, []).append(values)
    if not groups:
        raise InputError(f"{results / EXPERIMENT} holds no results: run `python -m experiments export` first")
    lines = [
        "Trained tables, and these tables exported by `embcomp.export` and loaded from the file: bytes of tables and "
        "maps in memory, with the factor to the full float32 tables; bytes of the whole program on disk; the AUC of "
        "the test split with its difference to float32. "
        "Written by `python -m experiments export`; means over seeds.",
    ]
    header = ["method", "budget", "seeds", "float32", "AUC"]
    header += [name for dtype in DTYPES for name in (dtype, "file", "AUC")]
    for dataset, of, model in dict.fromkeys(key[:3] for key in groups):
        here = [(key, runs) for key, runs in groups.items() if key[:3] == (dataset, of, model)]
        rows = [[label, budget or "–", *_cells(runs)] for (*_, label, budget), runs in here]
        lines += ["", f"## {model} on {dataset} ({of})", ""]
        lines += study.table(header, "ll" + "r" * (len(header) - 2), rows)
    return study.write_page(folder, EXPERIMENT, lines)


def _cells(runs: list[dict[str, Any]]) -> Iterator[str]:
    full, auc = runs[0]["full_nbytes"], _mean(run["metrics"].get("auc", math.nan) for run in runs)
    yield str(len(runs))
    yield _size(_mean(run["nbytes"] for run in runs), full)
    yield "–" if math.isnan(auc) else f"{auc:.4f}"  # of one class
    for i in range(len(DTYPES)):
        parts = [run["exported"][i] for run in runs]
        yield _size(_mean(exported["nbytes"] for exported in parts), full)
        yield decimal(round(_mean(exported["file_nbytes"] for exported in parts)))
        served = _mean(exported["metrics"].get("auc", math.nan) for exported in parts)
        yield "–" if math.isnan(served) else f"{served:.4f} ({served - auc:+.5f})"


def _size(nbytes: float, full: int) -> str:
    return f"{decimal(round(nbytes))}, {full / nbytes:.1f}x"


def _mean(values: Iterator[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
