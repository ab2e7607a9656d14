"""The processes of a training: results that they exchange, and errors that all of them raise. Needs torch alone."""

import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


class Ranks:
    """The processes of a group; without a group all processes, or this one alone. All processes make it together.

    Without a group they communicate over a separate gloo group, so that work in the background never mixes with the
    collective calls of the training; `timeout` is how long they wait for each other there.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, timeout: timedelta | None = None) -> None:
        self.several = dist.is_available() and dist.is_initialized()
        self.group: Any = dist.new_group(backend="gloo", timeout=timeout) if self.several and group is None else group
        self.rank = dist.get_rank(self.group) if self.several else 0
        self.world_size = dist.get_world_size(self.group) if self.several else 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, work: Callable[[], T]) -> list[T]:
        """Call `work` on every rank and return the answers of all ranks, by rank.

        Raises:
            Exception: the exception of `work` on this rank, else that of another rank, with a note that names the rank.
            RuntimeError: another process is gone.
        """
        answer: T | None = None
        error: Exception | None = None
        try:
            answer = work()
        except Exception as found:
            error = found
        answers = self._exchange((answer, None if error is None else _sendable(error)))
        if error is not None:
            raise error
        for rank, (_, failed) in enumerate(answers):
            if failed is not None:
                failed.add_note(f"on rank {rank} of {self.world_size}")
                raise failed
        return [found for found, _ in answers]

    def together(self, work: Callable[[], T]) -> T:
        """Call `work` on every rank and return this rank's own answer, which is not sent; errors as in `gather`."""
        kept: list[T] = []
        self.gather(lambda: kept.append(work()))
        return kept[0]

    def broadcast(self, work: Callable[[], T]) -> T:
        """Call `work` on rank 0 and return its answer, or raise its error, on all ranks."""
        answers: Any = self.gather(lambda: work() if self.first else None)
        return answers[0]

    def _exchange(self, value: Any) -> list[Any]:
        if not self.several:
            return [value]
        values: list[Any] = [None] * self.world_size
        try:
            dist.all_gather_object(values, value, group=self.group)
        except RuntimeError as error:
            raise self.gone(error) from error
        return values

    def gone(self, error: RuntimeError) -> RuntimeError:
        """The exception to raise after a collective call has failed."""
        return RuntimeError(
            f"rank {self.rank} of {self.world_size}: another process is gone or stuck; start all of them again, and a "
            f"training with checkpoints goes on from the last one ({error})"
        )


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception of someone else's making
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
