"""The state of a training on disk, from which it resumes exactly."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from embcomp import nested
from embcomp.checkpoints import Checkpoints, Damaged
from experiments.errors import InputError
from experiments.processes import distributed

_BEST = "weights of a run"


@dataclass
class Progress:
    """The trainer's own state, beside model and optimizers.

    Attributes:
        epoch: the current epoch, from 0.
        batch: the number of its batches that are done.
        loss_sum: the sum of the losses of these batches.
        best: the monitored metric of the best epoch so far.
        best_epoch: the best epoch, whose weights are in `best.safetensors`.
        stale: the number of epochs in a row without a new best.
        finished: True if no further epoch is to be trained.
        seconds: the seconds trained so far, over all sessions.
        peak_memory: the peak memory of all sessions, in bytes.
        history: the metrics of each finished epoch.
    """

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    best: float | None = None
    best_epoch: int | None = None
    stale: int = 0
    finished: bool = False
    seconds: float = 0.0
    peak_memory: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


class Last:
    """The last checkpoint of one run, in `<folder>/last-<key>`; written and read by `embcomp.checkpoints`.

    A checkpoint can be loaded by another number of processes than saved it.

    Args:
        folder: the folder of the run.
        key: the key of its configuration; checkpoints of another one are not read.
        model: the model, as it is trained.
        optimizers: the optimizers, in the order of the trainer.
        parts: other parts of the training, by name.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        model: nn.Module,
        optimizers: list[Optimizer],
        parts: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.path = folder, folder / f"last-{key}"
        self._saved = Checkpoints(
            self.path, distributed.local(model), optimizers, parts=parts, timeout=distributed.TIMEOUT
        )

    def save(self, step: int, progress: Progress, background: bool = False) -> None:
        self._saved.save(step, distributed.agreed(asdict(progress)), asynchronous=background)

    def wait(self) -> None:
        """Wait until what is written in the background is there."""
        self._saved.wait()

    def load(self) -> Progress | None:
        """Load into model, optimizers and random generators; return None if there is no checkpoint.

        Raises:
            InputError: the checkpoint was written by another version of the code.
        """
        if distributed.rank() == 0:  # what another configuration has left
            for path in self.folder.glob("last*"):
                if path != self.path:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            saved = self._saved.load()
        except Damaged as error:  # of a disk that lost it
            warnings.warn(f"{error}; the run begins again", RuntimeWarning, stacklevel=2)
            self.remove()
            return None
        except ValueError as error:
            raise InputError(
                f"{error}; it was written by another version of the code: begin again with --force"
            ) from error
        return None if saved is None else Progress(**saved.position)

    def remove(self) -> None:
        if distributed.rank() == 0:
            shutil.rmtree(self.path, ignore_errors=True)


class Best:
    """The weights of the best epoch of a run, `<folder>/best.safetensors`: a state dict of whole tables, in one piece.

    It may be newer than the last checkpoint by at most one epoch. Training repeats exactly from that checkpoint, so it
    is then written again with the same content.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.path, self.key = folder / "best.safetensors", key

    def save(self, model: nn.Module) -> None:
        state = {"key": self.key, "model": model.state_dict()}
        if distributed.rank() == 0:
            for left in self.path.parent.glob(f".{self.path.name}.*.part"):  # of a process that was killed meanwhile
                left.unlink()
            nested.save(self.path, _BEST, state)
        distributed.agreed(None)  # no process reads it before it is written

    def exists(self) -> bool:
        """Return whether the file exists, undamaged and of this configuration."""
        try:
            return self._read() is not None
        except Damaged:
            return False

    def load(self, model: nn.Module) -> None:
        try:
            state = self._read()
        except Damaged as error:
            raise InputError(f"{error}; train the run again with --force") from None
        if state is None:
            raise InputError(f"{self.path} is missing, with the weights of the best epoch; run with --force")
        model.load_state_dict(state["model"])

    def _read(self) -> dict[str, Any] | None:
        earlier = self.path.with_suffix(".pt")  # of embcomp 0.1
        try:
            state = nested.load(self.path if self.path.exists() else earlier, _BEST)
        except FileNotFoundError:
            return None
        return state if isinstance(state, dict) and state.get("key") == self.key else None
