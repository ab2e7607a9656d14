"""The demo: full and compressed tables side by side, in a few minutes on two cores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

import data
from data.registry import has_files
from experiments.config import DataConfig, ExperimentConfig
from experiments.load import check
from experiments.report import collect, write_html
from experiments.report.collect import Section
from experiments.runs.results import is_current
from experiments.runs.runner import Settings, run_all
from experiments.tasks.datasets import load_data

_SHARES = [0.1, 0.04]
_VALUES: dict[str, Any] = {
    "experiment": "demo",
    "model": {"name": "DCNv2", "embedding_dim": 16, "options": {"cross_layers": 2, "hidden": [64, 32]}},
    "optimizer": {"name": "Adam", "lr": 4e-3},
    "training": {"batch_size": 2048, "epochs": 3, "patience": 1, "eval_batch_size": 8192},
    "methods": [
        {"method": "Full"},
        {"method": "HashingTrick", "share": _SHARES},
        {"method": "DoubleHash", "share": _SHARES},
        {"method": "QuotientRemainder", "share": _SHARES},
        {"method": "FrequencyHash", "share": _SHARES},
        {"method": "UnifiedEmbedding", "options": {"chunk_dim": 8}, "share": _SHARES},
    ],
}


def experiment() -> ExperimentConfig:
    """Return the experiment, on MovieLens-1M if EMBCOMP_DATA holds it, else on synthetic clicks.

    Raises:
        InputError: MovieLens-1M is there, but one of its files is missing or damaged.
    """
    source: dict[str, Any] = {"name": "synthetic", "options": {"num_rows": 600_000}}
    if has_files("ml-1m"):
        source = {"name": "ml-1m"}
        load_data(data.load, DataConfig(name="ml-1m"))
    return check({**_VALUES, "data": source}, "demo")


def run_demo(out: Path, jobs: int, console: Console, config: ExperimentConfig | None = None) -> Path:
    """Train, print a table, and write `report.html` into `out`."""
    results = out / "results"
    config = config or experiment()
    runs = list(config.runs())
    pending = [run for run in runs if not is_current(run, results)]
    console.print(f"{config.model[0].name} on {config.data.name}: {len(pending)} runs", highlight=False)
    if len(pending) < len(runs):
        done = len(runs) - len(pending)
        console.print(f"{done} more are in {results} already; remove {out} to train them again", highlight=False)
    summary = run_all(pending, Settings(results, out), console, jobs)
    if summary.bad_input or summary.failed:
        raise SystemExit(2 if summary.bad_input else 1)
    (shown,) = collect(results, [config.experiment])
    section = next(section for section in shown.sections if section.dataset == config.data.name)
    console.print(_table(section))
    return write_html(results, out / "report.html", [config.experiment], title="embcomp demo")


def _table(section: Section) -> Table:
    table = Table(title=f"{section.title}, test split")
    table.add_column("method")
    for column in ("bytes", "share", "AUC", "log-loss"):
        table.add_column(column, justify="right")
    for row in section.rows:
        scores = (f"{row.metrics[name].mean:.4f}" for name in ("auc", "logloss"))
        table.add_row(row.label, decimal(row.nbytes, precision=2), f"{row.share:.1%}", *scores)
    return table
