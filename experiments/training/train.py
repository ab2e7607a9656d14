"""Training: epochs, early stopping, and checkpoints from which a killed run resumes exactly."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from experiments.config import TrainingConfig
from experiments.errors import Diverged, InputError
from experiments.loggers import Logger
from experiments.processes import distributed
from experiments.processes.machine import PeakMemory
from experiments.tasks.kind import FittedTask, Task
from experiments.training.adapting import schedule_of
from experiments.training.checkpoint import Best, Last, Progress
from experiments.training.optim import decay_lr, make_optimizers

Report = Callable[[int, int, str], None]
"""A function of (steps done, steps in all, text) that is called about twice a second."""

_TICK_SECONDS = 0.5
_ASK_EVERY = 16


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        metrics: the metrics of the best epoch: `valid/...` and `test/...`.
        nbytes: the bytes of tables and maps, as they are served.
        training_nbytes: the bytes of tables and maps, while they train.
    """

    metrics: dict[str, float]
    nbytes: int
    training_nbytes: int
    progress: Progress


class Trainer:
    """The trainer of one task.

    Args:
        folder: the folder of the checkpoints.
        key: the key of the configuration; checkpoints of another one are ignored.
        loggers: a function from the step at which the training continues to the loggers, in the first process.
        checkpoint_seconds: the time between checkpoints inside an epoch; each validation also ends with a checkpoint.
        checkpoint_steps: the number of steps between checkpoints, which are then written in the background; it replaces
            `checkpoint_seconds`.
        full: the best weights of the run of full tables, for a method that is fitted to them. A method that is fine
            tuned starts from them; one that is fitted after training trains full tables itself without them.
    """

    def __init__(
        self,
        task: Task,
        *,
        folder: Path,
        key: str,
        device: torch.device,
        report: Report,
        loggers: Callable[[int], Sequence[Logger]] = lambda step: (),
        checkpoint_seconds: float = 30.0,
        checkpoint_steps: int | None = None,
        full: Best | None = None,
    ) -> None:
        self.task, self.device, self.report = task, device, report
        self.config: TrainingConfig = task.run.training
        built, optimizer, factor = task.model(device), task.run.optimizer, task.run.method.fine_tuned
        if factor is not None:
            if full is None:
                raise ValueError("a run that is fine tuned needs the weights of the full tables")
            full.load(built.model)
            built, optimizer, full = cast(FittedTask, task).fitted(built), optimizer.scaled(factor), None
        self.built, self.full = built, full
        self.nbytes, self.training_nbytes = built.nbytes, built.training_nbytes  # before a process holds a part
        if factor is not None:
            self.training_nbytes = max(self.training_nbytes, task.full_nbytes)  # of the training before
        self.model: nn.Module
        self.model, self.optimizers = make_optimizers(built, optimizer, device)
        self.steps = task.steps
        self.schedule = schedule_of(task, self.model, built.embeddings, self.optimizers[0], device)
        parts = {} if self.schedule is None else {"schedule": self.schedule}
        self.best, self.last = Best(folder, key), Last(folder, key, self.model, self.optimizers, parts)
        self.checkpoint_seconds, self.checkpoint_steps = checkpoint_seconds, checkpoint_steps
        self.memory = PeakMemory(device)
        self.progress = self.last.load() or Progress()
        self.earlier_seconds, self.started = self.progress.seconds, time.monotonic()
        self.next_save = self.started + checkpoint_seconds
        done = self.progress.epoch * self.steps + self.progress.batch
        self.loggers = list(loggers(done)) if distributed.rank() == 0 else []

    def fit(self) -> Outcome:
        """Train to the end, then test the best epoch.

        Raises:
            Diverged: the loss or the logits are not finite.
        """
        metrics: dict[str, float] | None = None
        try:
            if self.full is None:
                self.train()
            (self.full or self.best).load(self.model)
            if self.task.run.method.after_training:
                built = cast(FittedTask, self.task).fitted(self.built)
                self.model, self.nbytes = built.model, built.nbytes
            metrics = tested = self._evaluate("valid") | self._evaluate("test")
        finally:
            for logger in self.loggers:
                logger.close(metrics)
        self._clock()
        return Outcome(tested, self.nbytes, self.training_nbytes, self.progress)

    def train(self) -> None:
        """Train to the end; the model then has the weights of the last epoch.

        Raises:
            Diverged: the loss or the logits are not finite.
        """
        while not self.progress.finished:
            self._epoch()
            self._end_epoch()
        self.last.wait()

    def _epoch(self) -> None:
        progress, task, schedule = self.progress, self.task, self.schedule
        model, optimizers, on_cpu = self.model, self.optimizers, self.device.type == "cpu"
        clipped = [p for group in optimizers[0].param_groups for p in group["params"]]
        clip = task.run.optimizer.max_grad_norm
        loss_sum = torch.tensor(progress.loss_sum, dtype=torch.float64, device=self.device)
        model.train()
        next_tick = time.monotonic()
        for batch in task.batches(progress.epoch, progress.batch):
            if not on_cpu:
                batch = batch.to(self.device, non_blocking=True)
            loss = task.loss(model, batch)
            (loss if schedule is None else loss + schedule.penalty()).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(clipped, clip)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if schedule is not None:
                schedule.step()
            loss_sum += loss.detach()
            progress.batch += 1
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + _TICK_SECONDS
                progress.loss_sum = loss_sum.item()
                self._tick()
            if self._time_to_save(now):
                distributed.mean_(loss_sum)
                progress.loss_sum = loss_sum.item()
                self._save()
        distributed.mean_(loss_sum)
        progress.loss_sum = loss_sum.item()
        if self.steps and not torch.isfinite(loss_sum):
            raise Diverged(f"the loss is not finite in epoch {progress.epoch + 1}; lower the learning rate")

    def _end_epoch(self) -> None:
        """Record the epoch that has ended, and evaluate it if it is one of the validated epochs."""
        progress, every = self.progress, self.task.validate_every
        validated = (progress.epoch + 1) % every == 0 or progress.epoch + 1 >= self.config.epochs
        metrics = self._evaluate("valid") if validated else {}
        loss = progress.loss_sum / self.steps
        progress.history.append({"train/loss": loss, **metrics})
        for logger in self.loggers:
            logger.log((progress.epoch + 1) * self.steps, progress.history[-1])
        if self.schedule is None or self.schedule.stage == "train":  # what is still searched is not served
            progress.stale += 1
            if validated:
                self._judge(metrics)
        progress.epoch += 1
        progress.batch, progress.loss_sum = 0, 0.0
        if self.schedule is not None and not progress.finished:
            self.schedule.epoch_ended()
        if validated:
            self._save()

    def _judge(self, metrics: dict[str, float]) -> None:
        """Keep a new best, lower the learning rate, or end the training."""
        progress, config = self.progress, self.config
        if config.monitor not in metrics:
            why = "one class only" if config.monitor != "valid/gauc" else "no group with both classes"
            raise InputError(
                f"{config.monitor} is not defined: the valid split holds {why}; split the data otherwise, or set "
                "training.monitor to 'valid/logloss'"
            )
        value = metrics[config.monitor]
        gain = None if progress.best is None else (value - progress.best) * (1 if config.maximise else -1)
        if gain is None or gain > config.min_delta:
            progress.best, progress.best_epoch, progress.stale = value, progress.epoch, 0
            self.best.save(self.model)
        else:
            decay_lr(self.optimizers, config.lr_factor, config.min_lr)
        progress.finished = progress.stale >= config.patience or progress.epoch + 1 >= config.epochs

    def _evaluate(self, split: str) -> dict[str, float]:
        return self.task.evaluate(self.model, split, self.device)

    def _tick(self) -> None:
        progress = self.progress
        done = progress.epoch * self.steps + progress.batch
        loss = progress.loss_sum / max(progress.batch, 1)
        for logger in self.loggers:
            logger.log(done, {"train/running_loss": loss})
        best = "" if progress.best is None else f"  {self.config.monitor} {progress.best:.4f}"
        text = f"epoch {progress.epoch + 1}/{self.config.epochs}  loss {loss:.4f}{best}"
        self.report(done, self.config.epochs * self.steps, text)

    def _time_to_save(self, now: float) -> bool:
        """Return whether to save, by the steps or by the clock of the first process, asked every few batches."""
        if self.checkpoint_steps is not None:
            return self._steps_done % self.checkpoint_steps == 0
        if distributed.size() == 1:
            return now >= self.next_save
        return self.progress.batch % _ASK_EVERY == 0 and distributed.agreed(now >= self.next_save)

    @property
    def _steps_done(self) -> int:
        return self.progress.epoch * self.steps + self.progress.batch

    def _clock(self) -> None:
        self.progress.seconds = self.earlier_seconds + time.monotonic() - self.started
        self.progress.peak_memory = max(self.progress.peak_memory, self.memory.nbytes())

    def _save(self) -> None:
        self._clock()
        self.last.save(self._steps_done, self.progress, background=self.checkpoint_steps is not None)
        self.next_save = time.monotonic() + self.checkpoint_seconds
