"""Loggers of the numbers of a training while it runs: TensorBoard, MLflow, Weights & Biases, or your own class.

`LOGGERS` maps names to functions that make a logger for a run; `python -m experiments run --log NAME` selects one. The
packages of a logger are imported when it is made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from experiments.config import RunConfig
from experiments.errors import InputError
from experiments.files import write_text


class Logger(Protocol):
    """The interface of a logger; errors that it raises end the run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by name, after this number of steps."""
        ...

    def close(self, metrics: Mapping[str, float] | None) -> None:
        """End with the metrics of the best epoch, or None if the training was interrupted and may be resumed."""
        ...


@dataclass(frozen=True)
class Start:
    """The arguments from which a logger is made.

    Attributes:
        run: the configuration of the run.
        folder: the folder of the run's checkpoints, in which a logger may keep a file.
        work: the folder of all files that trainings write.
        step: the step from which the training continues; 0 for a new one.
    """

    run: RunConfig
    folder: Path
    work: Path
    step: int

    @property
    def name(self) -> str:
        return f"{self.run.experiment}/{self.run.name}"


class TensorBoard:
    """A logger of scalars into `<work>/tensorboard/<experiment>/<run>`."""

    def __init__(self, start: Start) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(start.work / "tensorboard" / start.name), purge_step=start.step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self, metrics: Mapping[str, float] | None) -> None:
        self.writer.close()


class MLflow:
    """A run of the MLflow experiment of the same name, at MLFLOW_TRACKING_URI; a resumed training continues its run."""

    def __init__(self, start: Start) -> None:
        self.mlflow = _imported("mlflow", "mlflow")
        self.client = self.mlflow.MlflowClient()
        note = start.folder / "mlflow-run"
        if start.step and note.is_file():
            self.id = note.read_text().strip()
            return
        experiment = self.client.get_experiment_by_name(start.run.experiment)
        experiment_id = (
            self.client.create_experiment(start.run.experiment) if experiment is None else experiment.experiment_id
        )
        self.id = self.client.create_run(experiment_id, run_name=start.run.name).info.run_id
        write_text(note, self.id)
        for name, value in _flat(start.run.to_dict()).items():
            self.client.log_param(self.id, name, str(value)[:500])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.client.log_metric(self.id, _plain(name), value, step=step)

    def close(self, metrics: Mapping[str, float] | None) -> None:
        for name, value in (metrics or {}).items():
            self.client.log_metric(self.id, _plain(name), value)
        self.client.set_terminated(self.id, "KILLED" if metrics is None else "FINISHED")


class WandB:
    """A run of Weights & Biases in the project WANDB_PROJECT (by default embcomp), grouped by experiment."""

    def __init__(self, start: Start) -> None:
        wandb = _imported("wandb", "wandb")
        note = start.folder / "wandb-run"
        known = note.read_text().strip() if start.step and note.is_file() else None
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "embcomp"),
            group=start.run.experiment,
            name=start.run.name,
            config=start.run.to_dict(),
            dir=str(start.work),
            id=known,
            resume="must" if known else None,
        )
        write_text(note, self.run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self, metrics: Mapping[str, float] | None) -> None:
        self.run.summary.update(dict(metrics or {}))
        self.run.finish(exit_code=int(metrics is None))


LOGGERS: dict[str, Callable[[Start], Logger]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


def _imported(module: str, package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(f"--log {module}: {error}: pip install {package}") from None


def _plain(name: str) -> str:
    """Return a metric's name as MLflow accepts it, without the @ of recall@20."""
    return name.replace("@", "_at_")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
