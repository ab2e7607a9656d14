"""Where a training stands, on disk: enough to go on as if it had never stopped."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from experiments import distributed
from experiments.errors import InputError
from experiments.files import write_atomic


@dataclass
class Progress:
    """The trainer's own state, beside model and optimizers.

    Attributes:
        epoch: the current one, from 0.
        batch: batches of it that are done.
        loss_sum: of these batches.
        best: the monitored metric of the best epoch so far.
        best_epoch: which that was; its weights are in `best.pt`.
        stale: epochs in a row without a new best.
        finished: no further epoch is to be trained.
        seconds: trained so far, over all sessions.
        peak_memory: bytes, the most of all sessions.
        history: metrics of each finished epoch.
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


class Checkpoints:
    """`last.pt` and `best.pt` of one run, in its own folder.

    Both are written whole or not at all. `best.pt` may be newer than `last.pt` by at most one epoch; as training
    repeats exactly from `last.pt`, it is then written again with the same content.

    Args:
        folder: of the run.
        key: says which configuration a file belongs to; files of another one are not read.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self.last, self.best = folder / "last.pt", folder / "best.pt"

    def save(self, model: nn.Module, optimizers: list[Optimizer], progress: Progress) -> None:
        rng = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            rng |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
        state = {
            "key": self.key,
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "progress": asdict(progress),
            "rng": rng,
        }
        self._write(self.last, state)

    def restore(self, model: nn.Module, optimizers: list[Optimizer]) -> Progress | None:
        """Load `last.pt` into model, optimizers and random generators; None where there is none to go on from.

        Raises:
            InputError: it was written by another version of the code.
        """
        state = self._read(self.last)
        if state is None:
            return None
        try:
            model.load_state_dict(state["model"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{self.last} fits another version of the code, or one process where several train its tables; begin "
                "anew with --force"
            ) from error
        for device, rng in state["rng"].items():
            torch.set_rng_state(rng) if device == "cpu" else torch.cuda.set_rng_state(rng, device)
        return Progress(**state["progress"])

    def save_best(self, model: nn.Module) -> None:
        state = {"key": self.key, "model": model.state_dict()}
        self._write(self.best, state)

    def has_best(self) -> bool:
        """Whether `best.pt` is of this configuration."""
        return self._read(self.best) is not None

    def load_best(self, model: nn.Module) -> None:
        state = self._read(self.best)
        if state is None:
            raise FileNotFoundError(f"{self.best} is gone, with the weights of the best epoch; run with --force")
        model.load_state_dict(state["model"])

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        if distributed.rank() == 0:
            write_atomic(path, lambda file: torch.save(state, file))
        distributed.agreed(None)  # nobody reads it before it is there

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            return None  # not ours, or of a disk that lost it: begin again
        return state if isinstance(state, dict) and state.get("key") == self.key else None
