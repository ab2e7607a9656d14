"""The result files, one per run, `<results>/<experiment>/<run>.json`; runs whose file is current are skipped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

import embcomp
from experiments.config import RunConfig
from experiments.config.trained import VECTORS
from experiments.errors import InputError
from experiments.files import write_json
from experiments.plugins import code_key
from experiments.processes import distributed
from experiments.processes.machine import hardware, versions
from experiments.runs.state import data_config, data_key, reader
from experiments.tasks.task import Task
from experiments.training.train import Outcome

_PACKAGE = Path(__file__).parents[1]
RESULTS = _PACKAGE / "results" if _PACKAGE.name == "experiments" else Path("results")  # not into an installed package
FORMAT = 1  # raise it when results of the same configuration change: all files are then stale


def key(run: RunConfig) -> str:
    """Return a checksum of the inputs of a result: the configuration, and embcomp's version without its last part.

    For your own data it covers the content of the files and of the schema, not their paths; for your own models,
    methods and readers the files that define them. The content of a published data set's files has its own checksum,
    see `is_of`.

    Raises:
        InputError: your own data do not exist.
    """
    release = embcomp.__version__.rsplit(".", 1)[0]
    values = {**run.to_dict(), "data": data_config(run)}
    if code := code_key(run, reader(run)):
        values["code"] = code
    text = json.dumps([FORMAT, release, values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def checkpoint_key(run: RunConfig) -> str:
    """Return a checksum of all that a training depends on, the content of a published data set's files included."""
    known = data_key(run)
    return key(run) if known is None else hashlib.sha256(f"{key(run)} {known}".encode()).hexdigest()[:16]


def proof(run: RunConfig) -> dict[str, str]:
    """Return the keys by which a result file shows to which run it belongs; see `is_of`."""
    known = data_key(run)
    return {"key": key(run), **({"data_key": known} if known else {})}


def is_of(values: Any, run: RunConfig) -> bool:
    """Return whether a result file is of this run: of its configuration, and of the files that are here.

    Result files from before `data_key`, and data that are not here, are judged by the key alone.
    """
    if not isinstance(values, dict) or values.get("key") != key(run):
        return False
    known, here = values.get("data_key"), data_key(run)
    return known is None or here is None or known == here


def path_of(run: RunConfig, results: Path) -> Path:
    return results / run.experiment / f"{run.name}.json"


def infeasible_path(run: RunConfig, results: Path) -> Path:
    """Return the file that notes that a method cannot serve the run; it is kept apart from results."""
    return results / run.experiment / "infeasible" / f"{run.name}.json"


def is_current(run: RunConfig, results: Path) -> bool:
    """Return whether a file, of either kind, is of this run."""
    return any(is_of(peek(path), run) for path in (path_of(run, results), infeasible_path(run, results)))


def write_result(task: Task, outcome: Outcome, results: Path, device: torch.device) -> Path:
    run, progress = task.run, outcome.progress
    values: dict[str, Any] = {
        **_head(run),
        "rows": task.rows,
        "nbytes": outcome.nbytes,
        "served_nbytes": outcome.nbytes,
        "training_nbytes": outcome.training_nbytes,
        "full_nbytes": task.full_nbytes,
        "metrics": dict(sorted(outcome.metrics.items())),
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "history": progress.history,
        "seconds": round(progress.seconds, 1),
        "peak_memory": progress.peak_memory,
        "versions": versions(),
        "hardware": hardware(device),
        **({"processes": distributed.size()} if distributed.size() > 1 else {}),
        "config": run.to_dict(),
        "method_config": task.method.config(without=[VECTORS]),  # those of the run's own full tables
        **proof(run),
    }
    path = path_of(run, results)
    write_json(path, values)
    infeasible_path(run, results).unlink(missing_ok=True)
    return path


def write_infeasible(run: RunConfig, reason: str, results: Path) -> Path:
    path = infeasible_path(run, results)
    write_json(path, {**_head(run), "reason": reason, "config": run.to_dict(), **proof(run)})
    path_of(run, results).unlink(missing_ok=True)
    return path


def read_results(results: Path) -> list[dict[str, Any]]:
    """Return all results in a folder, ordered by file name. Files of benches, which are lists, are skipped."""
    return [result for _, result in named_results(results)]


def named_results(results: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the results of `read_results`, each with the name of its run."""
    read = ((path.stem, _read(path)) for path in sorted(results.glob("*/*.json")))
    return [(name, result) for name, result in read if isinstance(result, dict)]


def read_infeasible(results: Path) -> list[dict[str, Any]]:
    return [_read(path) for path in sorted(results.glob("*/infeasible/*.json"))]


def _head(run: RunConfig) -> dict[str, Any]:
    return {
        "experiment": run.experiment,
        "dataset": run.dataset,
        "model": run.model.name,
        "method": run.method.method,
        "label": run.label,
        "budget": dict([run.budget]) if run.budget else {},
        "seed": run.seed,
    }


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}; delete the file and run the experiment again") from None


def peek(path: Path) -> Any:
    """Return what a file holds; None where it cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
