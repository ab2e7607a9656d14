"""Processes on this machine that run the same functions, joined by gloo, for measurements and tests."""

from __future__ import annotations

import gc
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from experiments.errors import InputError

TIMEOUT = timedelta(seconds=60)
DIED = "the process has died"


@dataclass(frozen=True)
class Outcome:
    """The result of a function in one process: a value, or the text of an error."""

    value: Any = None
    error: str | None = None


class Processes:
    """A group of `number` processes, started once, that run the functions they are given.

    Inside a function `torch.distributed` knows rank and world size. Functions must be defined in modules, so that they
    can be pickled. Processes wait `timeout` for each other.

    >>> with Processes(2) as pair:
    ...     pair.run(os.path.basename, "a/b")
    ['b', 'b']
    """

    def __init__(self, number: int, timeout: timedelta = TIMEOUT) -> None:
        if number < 1:
            raise InputError(f"processes: {number}; give at least 1")
        context = start_context()
        self._folder = tempfile.TemporaryDirectory()
        self._ends: list[Any] = []
        self._workers: list[Any] = []
        for rank in range(number):
            here, there = context.Pipe()
            address = f"file://{self._folder.name}/store"
            worker = context.Process(target=_work, args=(there, rank, number, address, timeout), daemon=True)
            worker.start()
            there.close()  # so that the end of the worker is the end of the pipe
            self._ends.append(here)
            self._workers.append(worker)

    def start(self, function: Callable[..., Any], *args: Any) -> None:
        """Begin `function(*args)` in every process; `outcomes` waits for it."""
        for end in self._ends:
            with suppress(BrokenPipeError, ConnectionResetError):  # of a process that is gone: its outcome says so
                end.send((function, args))

    def outcomes(self, seconds: float | None = None) -> list[Outcome | None]:
        """Return the outcome of each process, by rank; None for one that has not ended within these seconds."""
        end_of_time = None if seconds is None else time.monotonic() + seconds
        return [self._receive(end, end_of_time) for end in self._ends]

    def ended(self) -> bool:
        """Return whether one of the processes has an outcome."""
        return any(end.poll() for end in self._ends)

    def kill(self, rank: int) -> None:
        """Send SIGKILL to a process."""
        self._workers[rank].kill()

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Run a function and return its values, by rank. Raise RuntimeError with the text of every error."""
        self.start(function, *args)
        outcomes = [outcome for outcome in self.outcomes() if outcome]
        errors = [f"rank {rank}: {outcome.error}" for rank, outcome in enumerate(outcomes) if outcome.error]
        if errors:
            raise RuntimeError("\n".join(errors))
        return [outcome.value for outcome in outcomes]

    def _receive(self, end: Any, end_of_time: float | None) -> Outcome | None:
        try:
            if end_of_time is not None and not end.poll(max(end_of_time - time.monotonic(), 0)):
                return None
            return Outcome(*end.recv())
        except (EOFError, ConnectionResetError):
            return Outcome(error=DIED)

    def close(self) -> None:
        for end in self._ends:
            end.close()
        for worker in self._workers:
            worker.join(timeout=5)
            if worker.is_alive():
                worker.kill()
                worker.join()
        self._folder.cleanup()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def start_context() -> Any:
    """Return how processes start: from one that has imported everything, if the system can fork."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    modules = ["experiments.runs.runner", "experiments.runs.results", "experiments.training.train"]
    modules += [
        "embcomp.checkpoints.contents",
        "pandas",
    ]  # pyarrow imports pandas with the first rows
    context.set_forkserver_preload(modules)
    return context


def _work(end: Any, rank: int, number: int, address: str, timeout: timedelta) -> None:
    import torch
    import torch.distributed as dist

    os.environ["LOCAL_WORLD_SIZE"] = str(number)  # what torchrun says
    torch.set_num_threads(1)
    gc.freeze()  # what was imported before the fork is searched and copied by no pass of the garbage collector
    try:
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=number, timeout=timeout)
    except Exception:  # another process has died
        end.send((None, traceback.format_exc()))
        return
    while True:
        try:
            function, args = end.recv()
        except (EOFError, OSError):
            break
        try:
            answer = (function(*args), None)
        except Exception:
            answer = (None, traceback.format_exc())
        end.send(answer)
    dist.destroy_process_group()
