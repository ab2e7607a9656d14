"""A kind of run: what one file of this folder says of it, and what its runs train."""

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
    """What the trainer and the result files need of a run.

    Attributes:
        method: at its budget.
        rows: of all stores of the tables together.
        full_nbytes: of the uncompressed tables.
        shown: metrics of the test split that are printed at the end.
        validate_every: epochs between two evaluations of the valid split.
        steps: batches of an epoch.
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
        """A new model, its weights drawn from the run's seed."""
        ...

    def batches(self, epoch: int, start_batch: int) -> Iterator[Any]:
        """Batches of the train split, with a method `to`, in an order that depends on (seed, epoch) alone."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch, a scalar."""
        ...

    def evaluate(self, model: nn.Module, split: str, device: torch.device) -> dict[str, float]:
        """`<split>/<metric>` -> value."""
        ...


class FittedTask(Task, Protocol):
    """A task whose method may be fitted to trained full tables."""

    def fitted(self, built: BuiltModel) -> BuiltModel:
        """The same model, the method fitted to its trained full tables."""
        ...


@dataclass(frozen=True)
class Kind:
    """A kind of run, such as retrieval.

    Attributes:
        name: a key of `experiments.tasks.task.KINDS`.
        section: settings of the kind; a file that has a section of its `key` holds runs of this kind.
        datasets: the data sets of its runs, by name.
        problems: says what is wrong with an experiment, one line each, as far as it can be known without data.
        prepare: loads the data of a run and sizes its method; see `experiments.tasks.task.prepare`.
    """

    name: str
    section: type[Section]
    datasets: Mapping[str, Dataset]
    problems: Callable[[ExperimentConfig], Iterator[str]]
    prepare: Callable[[RunConfig], Task]
