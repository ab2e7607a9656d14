"""`python -m experiments kills`: a training that is killed repeatedly gives the same result as an undisturbed one.

Two processes train a sharded model on synthetic clicks and save in the background, nearly all the time. SIGKILL hits
one of them, or both, at random moments: while they start, load, train or save. A process that is left must end by
itself. Both are started again, until the training is done. Most kills first wait for a few new checkpoints, so that
kills are spread over the training on machines of any speed.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
import re
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import data
import embcomp
from embcomp.ops.kmeans import no_progress
from experiments.load import check
from experiments.processes.processes import DIED, Processes
from experiments.studies import study
from experiments.tasks.by_table import ByTable
from experiments.tasks.clicks import ClickTask
from experiments.training.train import Trainer

EXPERIMENT = "sharded-kills"
PROCESSES = 2
WAIT = timedelta(seconds=30)  # of processes for each other, but for checkpoints, which wait `distributed.TIMEOUT`
PATIENCE = 100.0  # seconds in which a process must end that has lost another, perhaps while they were joining
STARTS = 0.2  # share of the kills that come before the training goes on
PAUSE = 0.5  # seconds at most between a checkpoint and the kill
METRICS = ("test/auc", "test/logloss", "test/ne")
PARTS = 4  # of a training, in which kills are counted
ROWS: dict[str, Any] = {"num_rows": 12_000, "num_users": 300, "num_items": 200, "num_communities": 5}


@dataclass(frozen=True)
class Training:
    """The settings of the training.

    Attributes:
        folder: the folder of checkpoints.
        batch_size: the rows of each process.
        save_every: the number of steps between checkpoints.
    """

    folder: Path
    epochs: int
    batch_size: int
    save_every: int = 5
    seed: int = 0


@dataclass(frozen=True)
class Kill:
    """A kill of one or both processes.

    Attributes:
        ranks: the ranks that were killed.
        phase: the phase of the training: "start" (or load), "train" or "save".
        checkpoint: the step of the last checkpoint, from which the training continued; None if there was none.
        others_ended_after: the seconds until the other process ended.
        error: the error of the other process.
    """

    ranks: list[int]
    phase: str
    checkpoint: int | None
    others_ended_after: float | None
    error: str | None


def run_all(results: Path, kills: int, epochs: int, report: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """Train with this many kills, write the result file, and return its path and content."""
    path = results / EXPERIMENT / "kills.json"
    values = study.stamped(run(kills, epochs, report=report))
    study.write_rows(path, [values])
    return path, values


def run(
    kills: int = 20,
    epochs: int = 2,
    batch_size: int = 32,
    seed: int = 0,
    *,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train undisturbed, then with kills; return both outcomes, each kill, and the kills per quarter of the steps.

    Raises:
        RuntimeError: a process that has lost another did not end, or the training failed.
    """
    data.load("synthetic", **ROWS)  # encoded once, before processes read it
    Processes(PROCESSES).close()  # the first processes of all take longer to start
    with tempfile.TemporaryDirectory() as folder:
        training = Training(Path(folder) / "alone", epochs, batch_size)
        alone = Life(training)
        outcomes = {"alone": alone.end()}
        report(f"alone: {alone.seconds:.1f} s to start, {alone.trained:.1f} s to train")
        moments, done = random.Random(seed), []
        starts = moments.sample(range(kills), max(1, round(STARTS * kills)))
        steps = outcomes["alone"]["steps"]
        each = steps / training.save_every / kills  # checkpoints for each kill, so that the training outlives them
        most = max(1, math.floor(1.5 * each))
        least = min(most, math.ceil(0.5 * each))
        training = replace(training, folder=Path(folder) / "killed-1")
        while len(done) < kills:
            ranks = moments.choice([[0], [1], [0, 1]])
            if len(done) in starts:
                kill = Life(training).kill_at_start(ranks, moments.uniform(0, alone.seconds))
            else:
                kill = Life(training).kill_later(ranks, moments.randint(least, most), moments.uniform(0, PAUSE))
            if isinstance(kill, Kill):
                done.append(kill)
                report(f"kill {len(done)}: {kill}")
            else:  # done before its time: once more from the start
                outcomes[training.folder.name] = kill
                training = replace(training, folder=Path(folder) / f"killed-{len(outcomes)}")
        outcomes[training.folder.name] = Life(training).end()
    return {
        "processes": PROCESSES,
        "epochs": epochs,
        "equal": all(each == outcomes["alone"] for each in outcomes.values()),
        "outcomes": dict(sorted(outcomes.items())),
        "kills_in_quarters": spread(done, steps),
        "kills": [asdict(kill) for kill in done],
    }


def spread(kills: list[Kill], steps: int) -> list[int]:
    """Return how many kills lie in each quarter of the steps, by the checkpoint before them."""
    parts = Counter(min((kill.checkpoint or 0) * PARTS // steps, PARTS - 1) for kill in kills)
    return [parts[part] for part in range(PARTS)]


class Life:
    """The processes of a training from their start to their end."""

    def __init__(self, training: Training) -> None:
        training.folder.mkdir(parents=True, exist_ok=True)
        self.training = training
        self.begun = training.folder / "begun"  # is there once all have loaded, and train
        self.begun.unlink(missing_ok=True)
        self.started = time.monotonic()
        self.processes = Processes(PROCESSES, timeout=WAIT)
        self.processes.start(_work, training, self.begun)

    def end(self) -> dict[str, Any]:
        """Wait until the training is done; return its outcome."""
        self._wait()
        self.seconds = time.monotonic() - self.started
        outcomes = self.processes.outcomes()
        self.trained = time.monotonic() - self.started - self.seconds
        self.processes.close()
        if errors := [outcome.error for outcome in outcomes if outcome and outcome.error]:
            raise RuntimeError(f"the training failed by itself: {errors}")
        return outcomes[0].value  # type: ignore[union-attr]

    def kill_at_start(self, ranks: list[int], seconds: float) -> Kill | dict[str, Any]:
        """Kill these ranks this many seconds after the start, or as soon as the training has begun."""
        self._wait(seconds)
        return self._kill(ranks, "train" if self.begun.exists() else "start")  # a part may be left from the life before

    def kill_later(self, ranks: list[int], checkpoints: int, pause: float) -> Kill | dict[str, Any]:
        """Kill these ranks after this many checkpoints and then this many seconds."""
        goal = max(_steps(self.training.folder), default=0) + checkpoints * self.training.save_every
        while max(_steps(self.training.folder), default=0) < goal and not self.processes.ended():
            time.sleep(0.005)
        time.sleep(pause)
        saves = any(self.training.folder.glob("last-*/.step-*.part"))
        return self._kill(ranks, "save" if saves else "train")

    def _kill(self, ranks: list[int], phase: str) -> Kill | dict[str, Any]:
        """Kill, and wait for the others; return the outcome if the training had ended before."""
        for rank in ranks:
            self.processes.kill(rank)
        begin = time.monotonic()
        outcomes = self.processes.outcomes(PATIENCE)
        ended = time.monotonic() - begin
        self.processes.close()
        hung = [rank for rank, outcome in enumerate(outcomes) if outcome is None]
        if hung:
            raise RuntimeError(f"ranks {hung} were still running {PATIENCE:.0f} s after ranks {ranks} had died")
        errors = {rank: outcome.error for rank, outcome in enumerate(outcomes) if outcome and outcome.error}
        if not errors:
            return outcomes[0].value  # type: ignore[union-attr]
        if DIED not in errors.values():
            raise RuntimeError(f"the training failed by itself: {errors}")
        others = [_brief(error) for error in errors.values() if error != DIED]
        return Kill(
            ranks=ranks,
            phase=phase,
            checkpoint=max(_steps(self.training.folder), default=None),
            others_ended_after=round(ended, 2) if len(ranks) < PROCESSES else None,
            error=others[0] if others else None,
        )

    def _wait(self, seconds: float = math.inf) -> None:
        """Wait until the training has begun, for at most this many seconds."""
        end = self.started + seconds
        while not self.begun.exists() and time.monotonic() < end and not self.processes.ended():
            time.sleep(0.005)


def _brief(error: str) -> str:
    """Return the message of a traceback's last exception, without gloo's source position and advice."""
    last = [line for line in error.splitlines() if re.match(r"[\w.]+: ", line)][-1]
    return re.sub(r"\[/[^\]]*\] ", "", last).partition(". ")[0]


def _steps(folder: Path) -> Iterator[int]:
    return (int(path.name.removeprefix("step-")) for path in folder.glob("last-*/step-*[0-9]"))


def _work(training: Training, begun: Path) -> dict[str, Any]:
    """Run one process of the training."""
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)  # of torch, for torchrec
    warnings.filterwarnings("error", "the run begins anew", RuntimeWarning)  # a damaged checkpoint
    return train(training, begun.touch)


def train(training: Training, begun: Callable[[], None]) -> dict[str, Any]:
    """Train from the last checkpoint to the end, on this rank; return metrics, and a checksum of all weights."""
    device = torch.device("cpu")
    task = make_task(training)
    trainer = Trainer(
        task,
        folder=training.folder,
        key="kills",
        device=device,
        report=no_progress,
        checkpoint_steps=training.save_every,
    )
    begun()
    trainer.train()
    losses = [epoch["train/loss"] for epoch in trainer.progress.history]
    metrics = task.evaluate(trainer.model, "test", device)
    return {
        "steps": training.epochs * task.steps,
        "loss": sum(losses) / len(losses),
        **{name: metrics[name] for name in METRICS},
        "weights": checksum(trainer.model.state_dict()),
    }


def make_task(training: Training) -> ClickTask:
    """Make a small Deep & Cross network with dropout on synthetic clicks, and another kind of method for each table."""
    values = {
        "data": {"name": "synthetic", "options": ROWS},
        "model": {
            "name": "DCN",
            "embedding_dim": 8,
            "options": {"cross_layers": 1, "hidden": [16], "dropout": 0.1},
        },
        "optimizer": {"name": "Adam", "lr": 0.01, "embedding": "RowWiseAdagrad", "embedding_lr": 0.1},
        "training": {
            "batch_size": PROCESSES * training.batch_size,
            "epochs": training.epochs,
            "patience": training.epochs,
        },
        "methods": [{"method": "Full"}],
        "seeds": [training.seed],
    }
    (run,) = check(values, "the study of kills").runs()
    task = ClickTask.prepare(run)
    names = [table.name for table in task.tables]
    shared = embcomp.UnifiedEmbedding(rows=40, chunk_dim=4)
    methods: Mapping[str, embcomp.Method] = dict.fromkeys(names, shared) | {
        "user": embcomp.FrequencyHash(rows=80, counts=task.data.counts("user"), tail="double"),
        "item": embcomp.HashEmbedding(rows=50),
    }
    return replace(task, method=ByTable(methods=methods))


def checksum(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of all tensors of a state, with their names."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
