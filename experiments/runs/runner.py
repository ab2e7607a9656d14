"""The runner of runs, one after the other or side by side, each in a folder of its own."""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from experiments.config import RunConfig
from experiments.errors import Diverged, Infeasible, InputError
from experiments.processes import distributed
from experiments.processes.processes import start_context
from experiments.runs.sent import Sent

if TYPE_CHECKING:
    from experiments.tasks.kind import Task
    from experiments.tasks.task import Prepared
    from experiments.training.checkpoint import Best

OUT = Path("out")
_PATIENCE = 30.0  # seconds for a lock: fewer than processes wait for each other


@dataclass(frozen=True)
class Settings:
    """The settings of the runner, none of which changes a result.

    Attributes:
        results: the folder of result files.
        work: the folder of checkpoints and TensorBoard scalars.
        threads: the threads of torch in each job.
        loggers: names in `experiments.loggers.LOGGERS`.
        imports: your own modules, which each job imports; see `experiments.plugins`.
    """

    results: Path
    work: Path = OUT
    device: str = "cpu"
    threads: int = 1
    checkpoint_seconds: float = 30.0
    loggers: tuple[str, ...] = ("tensorboard",)
    imports: tuple[str, ...] = ()


@dataclass
class Summary:
    """The names of the runs by their outcome."""

    done: list[str] = field(default_factory=list)
    infeasible: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    bad_input: list[str] = field(default_factory=list)


def execute(
    run: RunConfig,
    settings: Settings,
    report: Callable[[int, int, str], None],
    prepared: Task | Infeasible | None = None,
) -> tuple[str, str]:
    """Train one run, resuming where possible, and write its result file; return (status, message).

    The status is the name of a field of `Summary`. A task that `preflight` has `prepared` is not prepared again.
    """
    import torch

    from experiments.loggers import LOGGERS, Start
    from experiments.runs import results
    from experiments.tasks.task import prepare
    from experiments.training.train import Trainer

    torch.set_num_threads(settings.threads)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # a note on torchrec's use of torch.fx
    device = torch.device(settings.device)
    folder = settings.work / "runs" / run.experiment / run.name
    with _locked(folder, lambda: report(0, 0, "waits for another command that trains this run")) as alone:
        if not alone:
            return (
                "failed",
                f"another command trains this run, and has locked {folder / 'lock'}: let it end, or stop it",
            )
        try:
            if isinstance(prepared, Infeasible):
                raise prepared
            task = prepared or prepare(run)
            if run.method.from_trained and distributed.size() > 1:
                name = "after_training" if run.method.after_training else "fine_tuned"
                raise InputError(f"method.{name}: the full tables are trained in one process")
            full = trained(run.of_full_tables(), settings) if run.method.from_trained else None
            if full is None and run.method.fine_tuned is not None:
                status, message = execute(run.of_full_tables(), settings, report)
                if status != "done":
                    return status, f"the full tables that it starts from: {message}"
                full = trained(run.of_full_tables(), settings)
            trainer = Trainer(
                task,
                full=full,
                folder=folder,
                key=results.checkpoint_key(run),
                device=device,
                report=report,
                loggers=lambda step: [
                    LOGGERS[name](Start(run, folder, settings.work, step)) for name in settings.loggers
                ],
                checkpoint_seconds=settings.checkpoint_seconds,
            )
            outcome = trainer.fit()
        except Infeasible as error:
            if distributed.rank() == 0:
                results.write_infeasible(run, str(error), settings.results)
            return "infeasible", str(error)
        except InputError as error:
            return "bad_input", str(error)
        except Diverged as error:
            return "failed", str(error)
        except Exception as error:
            if distributed.size() > 1:  # the processes are no longer at one place
                raise distributed.Lost(traceback.format_exc()) from error
            return "failed", traceback.format_exc()  # of one run; the others may still be good
        if distributed.rank() == 0:
            results.write_result(task, outcome, settings.results, device)
            trainer.last.remove()
        distributed.agreed(None)  # the next run begins when this is written
    share = outcome.nbytes / task.full_nbytes
    shown = "  ".join(_shown(name, outcome.metrics.get(f"test/{name}")) for name in task.shown)
    return "done", f"{shown}  {outcome.nbytes:,} B ({share:.1%})  {outcome.progress.seconds:.0f} s"


def trained(run: RunConfig, settings: Settings) -> Best | None:
    """Return the best weights of a run whose training has ended; None if it has not."""
    from experiments.runs import results
    from experiments.training.checkpoint import Best

    folder = settings.work / "runs" / run.experiment / run.name
    best = Best(folder, results.checkpoint_key(run))
    return best if best.exists() and not any(folder.glob("last-*")) else None


def _shown(name: str, value: float | None) -> str:
    return f"{name} not defined (one class only)" if value is None else f"{name} {value:.4f}"


def forget(run: RunConfig, settings: Settings) -> None:
    """Delete checkpoints and scalars of a run, so that it begins again."""
    for kind in ("runs", "tensorboard"):
        shutil.rmtree(settings.work / kind / run.experiment / run.name, ignore_errors=True)


def run_all(
    runs: Sequence[RunConfig],
    settings: Settings,
    console: Console,
    jobs: int = 1,
    prepared: Prepared | None = None,
) -> Summary:
    """Execute runs with a progress bar each; an error in one does not stop the others.

    Args:
        prepared: the result of `preflight` for these runs; what is missing is prepared with its run.
    """
    summary = Summary()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        outcomes = (
            _one_by_one(runs, settings, bars, prepared)
            if jobs == 1
            else _side_by_side(runs, settings, jobs, bars, prepared)
        )
        whole = bars.add_task("runs", total=len(runs), text="", visible=len(runs) > 1)
        for run, (status, text) in outcomes:
            getattr(summary, status).append(run.name)
            mark = {"done": ("done", "green"), "infeasible": ("cannot", "yellow")}.get(status, ("failed", "red"))
            # One piece: the bars are drawn again after each, over whatever does not end its line.
            bars.console.print(Text.assemble(mark, f" {run.experiment}/{run.name}  {text}"), highlight=False)
            bars.advance(whole)
    return summary


Results = Iterator[tuple[RunConfig, tuple[str, str]]]


def _one_by_one(runs: Sequence[RunConfig], settings: Settings, bars: Progress, prepared: Prepared | None) -> Results:
    for run in runs:
        with _Bar(bars, run.name) as bar:
            outcome = execute(run, settings, bar.update, prepared.popleft() if prepared else None)
        yield run, outcome


def _side_by_side(
    runs: Sequence[RunConfig], settings: Settings, jobs: int, bars: Progress, prepared: Prepared | None
) -> Results:
    context = start_context()
    messages = context.Queue()
    open_bars: dict[str, _Bar] = {}
    pool = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_start_worker, initargs=(messages, settings.imports)
    )
    try:
        waiting: dict[Future[tuple[str, str]], RunConfig] = {
            pool.submit(_execute_in_worker, run, settings, Sent(prepared.popleft() if prepared else None)): run
            for run in runs
        }
        while waiting:
            _drain(messages, open_bars, bars)
            for future in [future for future in waiting if future.done()]:
                run = waiting.pop(future)
                if bar := open_bars.pop(run.name, None):
                    bar.close()
                yield run, future.result()
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _drain(messages: Any, open_bars: dict[str, _Bar], bars: Progress) -> None:
    """Pass on the messages of the workers, waiting for them a moment."""
    try:
        while True:
            name, *state = messages.get(timeout=0.1)
            if name not in open_bars:
                open_bars[name] = _Bar(bars, name)
            open_bars[name].update(*state)
    except Empty:
        return


_messages: list[Any] = []


def _start_worker(messages: Any, imports: Sequence[str]) -> None:
    from experiments import plugins

    _messages[:] = [messages]
    plugins.load(imports)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers


def _execute_in_worker(run: RunConfig, settings: Settings, sent: Sent) -> tuple[str, str]:
    def report(done: int, total: int, text: str) -> None:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            os._exit(1)  # no process waits for this run any more; the next command continues it
        _messages[0].put((run.name, done, total, text))

    return execute(run, settings, report, sent.task)


class _Bar:
    """The progress bar of one run."""

    def __init__(self, bars: Progress, name: str) -> None:
        self.bars = bars
        self.task: TaskID = bars.add_task(name, total=None, text="")

    def update(self, done: int, total: int, text: str) -> None:
        self.bars.update(self.task, completed=done, total=total or None, text=text)

    def close(self) -> None:
        self.bars.remove_task(self.task)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextmanager
def _locked(folder: Path, waits: Callable[[], None]) -> Iterator[bool]:
    """Lock the run, and tell whether this command alone trains it; a second command first waits a moment for the first.

    Processes that torchrun has started together are one command, with one answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        yield distributed.agreed(distributed.rank() > 0 or _lock(file, waits))


def _lock(file: IO[str], waits: Callable[[], None]) -> bool:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            waits()
            time.sleep(0.1)
