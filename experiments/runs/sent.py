"""Prepared tasks on their way to the processes of `--jobs`, so that none of them sizes a method again."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.errors import Infeasible
    from experiments.tasks.kind import Task


class Sent:
    """A task, or the reason why there is none, that is pickled when its run begins; None where it cannot be pickled.

    >>> pickle.loads(pickle.dumps(Sent(None))).task is None
    True
    """

    def __init__(self, task: Task | Infeasible | None) -> None:
        self.task = task

    def __reduce__(self) -> tuple[type[Sent], tuple[None]] | tuple[object, tuple[bytes]]:
        """Pickle by value: torch's own way between processes shares memory that the sender must keep."""
        try:
            return _received, (pickle.dumps(self.task),)
        except (pickle.PicklingError, TypeError, AttributeError, RuntimeError):  # of a kind of run of your own
            return Sent, (None,)


def _received(content: bytes) -> Sent:
    return Sent(pickle.loads(content))
