"""Where a fit stood, so that one that was stopped goes on."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embcomp.semantic_ids.artifact import checksum


class Checkpoint:
    """The state of a fit in one file; without a path, nowhere.

    Args:
        path: the file.
        inputs: what the fit depends on; a file of other inputs is refused.
    """

    def __init__(self, path: Path | None, inputs: dict[str, Any]) -> None:
        self.path = path
        plain = {name: checksum(value) if isinstance(value, Tensor) else value for name, value in inputs.items()}
        text = json.dumps(plain, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()

    def load(self) -> dict[str, Any]:
        """The saved state, empty where there is none.

        Raises:
            ValueError: the file is damaged, or of another fit.
        """
        if self.path is None or not self.path.exists():
            return {}
        try:
            saved = torch.load(self.path, weights_only=True, map_location="cpu")
        except Exception as error:
            raise ValueError(f"{self.path}: the checkpoint is damaged ({error}); delete it to begin again") from error
        if saved.get("key") != self.key:
            raise ValueError(f"{self.path}: a checkpoint of other content or settings; give another path")
        return saved["state"]

    def save(self, state: dict[str, Tensor | Any]) -> None:
        """Writes the state whole, or leaves the file as it was."""
        if self.path is None:
            return
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.save({"key": self.key, "state": state}, part)
            os.replace(part, self.path)
        finally:
            part.unlink(missing_ok=True)
