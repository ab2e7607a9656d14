"""`python -m experiments stability`: how much do predictions change when a model is trained again on a later window?

Runs of stability.toml, an experiment whose data set has the options `first_share` and `train_share`, are trained twice
from the same start: on the earlier and on the later half of the training clicks, with the same tokenizer, fitted on the
earlier half. Both models predict the test split. Each run becomes
`<results>/semantic-stability/<data set>/<run>.json`; runs whose file holds the same configuration are skipped.
"""

from __future__ import annotations

import dataclasses
import json
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
from experiments.files import write_json, write_text
from experiments.load import load
from experiments.processes.machine import hardware, versions
from experiments.report.collect import Stat
from experiments.runs.results import checkpoint_key, is_of, proof
from experiments.tasks.clicks import ClickTask, load_data
from experiments.tasks.content import resolved
from experiments.training.train import Trainer

CONFIG = Path(__file__).parent / "stability.toml"
EXPERIMENT = "semantic-stability"
WINDOWS = ((0.0, 0.4), (0.4, 0.8))  # shares of the clicks, in the order of time
SLICES = ("first_day", "older")


def run_all(results: Path, out: Path, console: Console, path: Path = CONFIG, pattern: str = "") -> None:
    """Train what is not current, and write its file.

    Args:
        out: folder of checkpoints.
        pattern: only runs whose name holds this.

    Raises:
        InputError: bad data or configuration.
    """
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # a note on torchrec's use of torch.fx
    torch.set_num_threads(1)
    for run in load(path).runs():
        file = results / EXPERIMENT / run.data.name / f"{run.name}.json"
        if pattern not in run.name or (file.is_file() and is_of(json.loads(file.read_text()), run)):
            continue
        values = {
            "experiment": EXPERIMENT,
            "label": run.label,
            "seed": run.seed,
            "change": measure(run, out),
            "windows": WINDOWS,
            "versions": versions(),
            "hardware": hardware(torch.device("cpu")),
            "config": run.to_dict(),
            **proof(run),
        }
        write_json(file, values)
        said = ", ".join(f"{name} {value:.4f}" for name, value in values["change"].items())
        console.print(f"{run.name}: {said}", highlight=False)


def measure(run: RunConfig, out: Path) -> dict[str, float]:
    """Train on both windows, and compare what they say of the test split."""
    runs = [_on_window(run, window) for window in WINDOWS]
    earlier = load_data(runs[0].data)
    method = resolved(runs[0], earlier).method  # one tokenizer, of the earlier window
    before, after = (
        _logits(dataclasses.replace(each, method=method), out / f"window{number}", checkpoint_key(each))
        for number, each in enumerate(runs)
    )
    return change(before, after, {name: column for name, column in _slices(earlier).items() if bool(column.any())})


def change(before: Tensor, after: Tensor, slices: dict[str, Tensor]) -> dict[str, float]:
    """Of two models on the same rows, and of each slice (bool [N]) as `<name>/<slice>`.

    `difference` is the mean of |p - q| over the mean of (p + q) / 2; `rank` is Spearman's correlation.

    >>> found = change(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 2.0]), {})
    >>> found == {"difference": 0.0, "rank": 1.0}
    True
    """
    p, q = before.double().sigmoid(), after.double().sigmoid()
    found = {}
    for suffix, rows in {"": torch.ones(len(p), dtype=torch.bool), **{f"/{n}": r for n, r in slices.items()}}.items():
        frame = pl.DataFrame({"p": p[rows].numpy(), "q": q[rows].numpy()})
        found[f"difference{suffix}"] = float((p - q)[rows].abs().mean() / ((p + q) / 2)[rows].mean())
        found[f"rank{suffix}"] = round(float(frame.select(pl.corr("p", "q", method="spearman")).item()), 6)
    return found


def write_markdown(results: Path, folder: Path) -> Path:
    """One table, means over seeds."""
    found: dict[str, list[dict[str, float]]] = {}
    for path in sorted((results / EXPERIMENT).glob("*/*.json")):
        values = json.loads(path.read_text())
        found.setdefault(values["label"], []).append(values["change"])
    names = [f"{metric}{part}" for metric in ("difference", "rank") for part in ("", *(f"/{s}" for s in SLICES))]
    lines = [
        f"# {EXPERIMENT}",
        "",
        "Each model is trained twice from the same start, on the earlier and on the later half of the training clicks "
        "of Globo, with the tokenizer of the earlier half. Difference: mean |p - q| of the two predictions on the test "
        "split, over their mean. Rank: Spearman's correlation of p and q. Mean ± standard deviation over seeds. "
        "Written by `python -m experiments stability`.",
        "",
        f"| method | seeds | {' | '.join(name.replace('/', ', ').replace('_', ' ') for name in names)} |",
        f"|---|{'---:|' * (len(names) + 1)}",
    ]
    for label, changes in sorted(found.items()):
        cells = [str(Stat.of([each[name] for each in changes])) if name in changes[0] else "–" for name in names]
        lines.append(f"| {label} | {len(changes)} | {' | '.join(cells)} |")
    path = folder / f"{EXPERIMENT}.md"
    write_text(path, "\n".join(lines) + "\n")
    return path


def _on_window(run: RunConfig, window: tuple[float, float]) -> RunConfig:
    known = data.DATASETS[run.data.name].options
    if missing := {"first_share", "train_share"} - set(known):
        raise InputError(f"data {run.data.name!r} has no option {' or '.join(sorted(missing))}: it cannot be windowed")
    options = {**run.data.options, "first_share": window[0], "train_share": window[1]}
    return dataclasses.replace(run, data=dataclasses.replace(run.data, options=options))


def _logits(run: RunConfig, folder: Path, run_key: str) -> Tensor:
    """Train, and predict the test split by the best epoch."""
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
