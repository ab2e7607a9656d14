"""The interface of a kind of run: a file of this folder describes it by a `Kind`, and its runs train a `Task`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from data.registry import Dataset
from embcomp.methods import Method
from experiments.config import ExperimentConfig, RunConfig
from experiments.config.section import Section
from experiments.tasks.sizing import BuiltModel


class Task(Protocol):
    """The interface of a run to the trainer and the result files.

    Attributes:
        method: the method at its budget.
        rows: the rows of all stores of the tables together.
        full_nbytes: the bytes of the uncompressed tables.
        shown: the metrics of the test split that are printed at the end.
        validate_every: the epochs between two evaluations of the valid split.
        steps: the batches of an epoch.
    """

    @property
    def run(self) -> RunConfig: ...
    @property
    def method(self) -> Method: ...
    @property
    def rows(self) -> int: ...
    @property
    def full_nbytes(self) -> int: ...
    @property
    def shown(self) -> tuple[str, ...]: ...
    @property
    def validate_every(self) -> int: ...
    @property
    def steps(self) -> int: ...

    def model(self, device: torch.device) -> BuiltModel:
        """Return a new model, its weights drawn from the run's seed."""
        ...

    def batches(self, epoch: int, start_batch: int) -> Iterator[Any]:
        """Return batches of the train split, with a method `to`, in an order that depends on (seed, epoch) alone."""
        ...

    def held_out(self, number: int, size: int) -> list[Any]:
        """Return up to `number` batches for searches by `embcomp.Schedule`, the same at each call.

        They are of the valid split, or of the train split where the valid one is also the test split or holds no
        batches that `loss` takes; they are never of the test split.
        """
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of a batch, a scalar."""
        ...

    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> dict[str, float]:
        """Return the metrics of a split, `<split>/<metric>` -> value."""
        ...


class FittedTask(Task, Protocol):
    """A task whose method may be fitted to trained full tables."""

    def fitted(self, built: BuiltModel) -> BuiltModel:
        """Return the same model with the method fitted to its trained full tables."""
        ...


@dataclass(frozen=True)
class Kind:
    """A kind of run, such as retrieval.

    Attributes:
        name: the key in `experiments.tasks.task.KINDS`.
        section: the settings of the kind; a file that has a section of its `key` holds runs of this kind.
        datasets: the data sets of its runs, by name.
        problems: a function that yields the problems of an experiment, one line each, that can be found without data.
        prepare: a function that loads the data of a run and sizes its method; see `experiments.tasks.task.prepare`.
    """

    name: str
    section: type[Section]
    datasets: Mapping[str, Dataset]
    problems: Callable[[ExperimentConfig], Iterator[str]]
    prepare: Callable[[RunConfig], Task]
