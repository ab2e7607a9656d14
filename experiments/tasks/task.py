"""A run's configuration -> what it trains: clicks, retrieval, or clicks on behaviour sequences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from embcomp.methods import Method
from experiments.config import RunConfig
from experiments.errors import Infeasible, InputError
from experiments.tasks.behavior import BehaviorTask
from experiments.tasks.clicks import ClickTask
from experiments.tasks.retrieval import RetrievalTask
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


def prepare(run: RunConfig) -> Task:
    """Load the data and size the method.

    Raises:
        InputError: bad data, or options that the method rejects at any budget.
        Infeasible: the method cannot serve this budget.
    """
    if run.behavior is not None:
        return BehaviorTask.prepare(run)
    return ClickTask.prepare(run) if run.retrieval is None else RetrievalTask.prepare(run)


def preflight(runs: Iterable[RunConfig]) -> None:
    """Size every method and build every model once, so that bad input is said before anything trains.

    Raises:
        InputError: see `prepare`; names the run.
    """
    built: set[str] = set()
    for run in runs:
        try:
            task = prepare(run)
            if (model := repr((run.experiment, run.data, run.model, run.pooling))) not in built:
                task.model(torch.device("cpu"))
                built.add(model)
        except Infeasible:
            continue
        except InputError as error:
            raise InputError(f"{run.experiment}/{run.name}: {error}") from error
