"""The short trainings that are finished, in a folder beside the cache of the probes: one that was stopped goes on."""

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from embcomp.files import write
from embcomp.methods.base import Method, plain


class KeptTrials:
    """The files of finished short trainings: what each left of its model, and its losses.

    Args:
        folder: the folder of the files; None to keep nothing.
        what: a text of all that a training depends on, besides its plan.
    """

    def __init__(self, folder: Path | None, what: str) -> None:
        self._folder, self._what = folder, what
        self._paths: set[Path] = set()

    def load(self, plan: Mapping[str, Method], number: int, share: float, model: nn.Module) -> list[float] | None:
        """Return the losses after a training, and give the model the state that it left; None if it is not there.

        Args:
            plan: the methods by table.
            number: the number of the round.
            share: the share of a full training.
            model: the model that the training would train.
        """
        path = self._path(plan, number, share)
        if path is None or not path.exists():
            return None
        try:
            kept = torch.load(path, weights_only=True)
            model.load_state_dict(kept["state"])
        except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError):  # damaged, or of other modules
            return None
        return [float(loss) for loss in kept["losses"]]

    def save(
        self, plan: Mapping[str, Method], number: int, share: float, model: nn.Module, losses: list[float]
    ) -> None:
        """Keep a finished training."""
        path = self._path(plan, number, share)
        if path is not None:
            write(path, lambda file: torch.save({"state": model.state_dict(), "losses": losses}, file))

    def clear(self) -> None:
        """Remove what this object has kept or read, when the plans are chosen; files of other choices stay."""
        for path in self._paths:
            path.unlink(missing_ok=True)
        if self._folder is not None and self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _path(self, plan: Mapping[str, Method], number: int, share: float) -> Path | None:
        if self._folder is None:
            return None
        named = json.dumps({name: plain(method) for name, method in plan.items()}, sort_keys=True)
        key = hashlib.sha256(f"{self._what}\n{named}\n{number}\n{share!r}".encode()).hexdigest()[:24]
        path = self._folder / f"{key}.pt"
        self._paths.add(path)
        return path
