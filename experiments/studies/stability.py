"""`python -m experiments stability`: the change of predictions if a model is trained again on a later window.

The runs of stability.toml, an experiment whose data set has the options `first_share` and `train_share`, are trained
twice from the same start: on the earlier and on the later half of the training clicks, with the same tokenizer, fitted
on the earlier half. Both models predict the test split. Each run writes `<results>/semantic-stability/<data
set>/<run>.json`; runs whose file holds the same configuration are skipped.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import polars as pl
import torch
from rich.console import Console
from torch import Tensor

import data
from embcomp.ops.kmeans import no_progress
from experiments.config import RunConfig
from experiments.errors import InputError
from experiments.load import load
from experiments.report.collect import Stat
from experiments.runs.results import checkpoint_key
from experiments.studies import study
from experiments.tasks.clicks import ClickTask
from experiments.tasks.content import resolved
from experiments.tasks.datasets import load_data
from experiments.training.train import Trainer

CONFIG = Path(__file__).parent / "stability.toml"
EXPERIMENT = "semantic-stability"
WINDOWS = ((0.0, 0.4), (0.4, 0.8))  # shares of the clicks, in the order of time
SLICES = ("first_day", "older")


def run_all(results: Path, out: Path, console: Console, path: Path = CONFIG, pattern: str = "") -> None:
    """Train the runs that are not current, and write their files.

    Args:
        out: the folder of checkpoints.
        pattern: the pattern of the runs; only those whose name contains it.

    Raises:
        InputError: data or configuration are wrong.
    """
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # a note on torchrec's use of torch.fx
    torch.set_num_threads(1)
    for run in load(path).runs():
        file = results / EXPERIMENT / run.data.name / f"{run.name}.json"
        if pattern not in run.name or study.is_current(file, run):
            continue
        values = {
            "experiment": EXPERIMENT,
            "label": run.label,
            "seed": run.seed,
            "change": measure(run, out),
            "windows": WINDOWS,
        }
        study.write(file, values, run)
        said = ", ".join(f"{name} {value:.4f}" for name, value in values["change"].items())
        console.print(f"{run.name}: {said}", highlight=False)


def measure(run: RunConfig, out: Path) -> dict[str, float]:
    """Train on both windows, and compare the predictions on the test split."""
    runs = [_on_window(run, window) for window in WINDOWS]
    earlier = load_data(data.load, runs[0].data)
    method = resolved(runs[0], earlier).method  # one tokenizer, of the earlier window
    before, after = (
        _logits(dataclasses.replace(each, method=method), out / f"window{number}", checkpoint_key(each))
        for number, each in enumerate(runs)
    )
    return change(before, after, {name: column for name, column in _slices(earlier).items() if bool(column.any())})


def change(before: Tensor, after: Tensor, slices: dict[str, Tensor]) -> dict[str, float]:
    """Compare two models on the same rows, and on each slice (bool [N]) as `<name>/<slice>`.

    `difference` is the mean of |p - q| over the mean of (p + q) / 2; `rank` is Spearman's correlation.

    >>> same = change(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 2.0]), {})
    >>> same == {"difference": 0.0, "rank": 1.0}
    True
    """
    p, q = before.double().sigmoid(), after.double().sigmoid()
    changes = {}
    for suffix, rows in {"": torch.ones(len(p), dtype=torch.bool), **{f"/{n}": r for n, r in slices.items()}}.items():
        frame = pl.DataFrame({"p": p[rows].numpy(), "q": q[rows].numpy()})
        changes[f"difference{suffix}"] = float((p - q)[rows].abs().mean() / ((p + q) / 2)[rows].mean())
        changes[f"rank{suffix}"] = round(float(frame.select(pl.corr("p", "q", method="spearman")).item()), 6)
    return changes


def write_markdown(results: Path, folder: Path) -> Path:
    """Write one table, means over seeds."""
    changes_of: dict[str, list[dict[str, float]]] = {}
    for values in study.read(results, EXPERIMENT):
        changes_of.setdefault(values["label"], []).append(values["change"])
    names = [f"{metric}{suffix}" for metric in ("difference", "rank") for suffix in ("", *(f"/{s}" for s in SLICES))]
    rows = [
        [label, str(len(changes)), *(_cell(changes, name) for name in names)]
        for label, changes in sorted(changes_of.items())
    ]
    lines = [
        "Each model is trained twice from the same start, on the earlier and on the later half of the training clicks "
        "of Globo, with the tokenizer of the earlier half. Difference: mean |p - q| of the two predictions on the test "
        "split, over their mean. Rank: Spearman's correlation of p and q. Mean ± standard deviation over seeds. "
        "Written by `python -m experiments stability`.",
        "",
        *study.table(["method", "seeds", *(_heading(name) for name in names)], "lr" + "r" * len(names), rows),
    ]
    return study.write_page(folder, EXPERIMENT, lines)


def _heading(metric: str) -> str:
    return metric.replace("/", ", ").replace("_", " ")


def _cell(changes: list[dict[str, float]], metric: str) -> str:
    return str(Stat.of([each[metric] for each in changes])) if metric in changes[0] else "–"


def _on_window(run: RunConfig, window: tuple[float, float]) -> RunConfig:
    known = data.DATASETS[run.data.name].options
    if missing := {"first_share", "train_share"} - set(known):
        raise InputError(f"data {run.data.name!r} has no option {' or '.join(sorted(missing))}: it cannot be windowed")
    options = {**run.data.options, "first_share": window[0], "train_share": window[1]}
    return dataclasses.replace(run, data=dataclasses.replace(run.data, options=options))


def _logits(run: RunConfig, folder: Path, run_key: str) -> Tensor:
    """Train, and predict the test split with the best epoch."""
    task = ClickTask.prepare(run)
    device = torch.device("cpu")
    trainer = Trainer(task, folder=folder / run.name, key=run_key, device=device, report=no_progress)
    trainer.fit()
    trainer.last.remove()
    model = trainer.model.eval()
    with torch.inference_mode():
        batches = task.data.loader("test", run.training.eval_batch_size)
        return torch.cat([model(batch.dense, batch.sparse) for batch in batches])


def _slices(clicks: data.ClickData) -> dict[str, Tensor]:
    rows = clicks.split("test").select(*(n for n in SLICES if n in clicks.schema.columns)).collect()
    return {name: torch.from_numpy(rows[name].to_numpy().copy()) for name in rows.columns}
