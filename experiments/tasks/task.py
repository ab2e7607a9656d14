"""The kinds of runs by name, and the task of a run's configuration."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch

from experiments.config import RunConfig
from experiments.errors import Infeasible, InputError
from experiments.tasks.behavior import BEHAVIOR
from experiments.tasks.clicks import CLICKS
from experiments.tasks.kind import Kind, Task
from experiments.tasks.next_items import NEXT_ITEMS
from experiments.tasks.retrieval import RETRIEVAL

KINDS: dict[str, Kind] = {kind.name: kind for kind in (CLICKS, RETRIEVAL, BEHAVIOR, NEXT_ITEMS)}
"""The kinds of runs; one of your own is added as `KINDS["mine"] = Kind("mine", ...)`."""

Prepared = deque[Task | Infeasible]
"""The task of each run, in order, or the reason why its method cannot serve its budget."""


def prepare(run: RunConfig) -> Task:
    """Load the data and size the method.

    Raises:
        InputError: the data are wrong, or the method rejects the options at any budget.
        Infeasible: the method cannot serve this budget.
    """
    return KINDS[run.kind].prepare(run)


def preflight(runs: Iterable[RunConfig]) -> Prepared:
    """Size every method and build every model once, so that wrong input is reported before any training.

    The result holds the prepared tasks, so that no run is prepared twice.

    Raises:
        InputError: see `prepare`; the error names the run.
    """
    prepared: Prepared = deque()
    built: set[str] = set()
    for run in runs:
        try:
            task = prepare(run)
            if (model := repr((run.experiment, run.data, run.model, run.section))) not in built:
                task.model(torch.device("cpu"))
                built.add(model)
            prepared.append(task)
        except Infeasible as error:
            prepared.append(error)
        except InputError as error:
            raise InputError(f"{run.experiment}/{run.name}: {error}") from error
    return prepared
