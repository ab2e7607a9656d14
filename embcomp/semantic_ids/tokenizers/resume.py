"""Where a fit stood, so that one that was stopped goes on."""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from embcomp import nested
from embcomp.artifact import checksum
from embcomp.files import Damaged

_KIND = "fit of a tokenizer"


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
            saved = nested.load(self.path, _KIND)
        except Damaged as error:
            raise Damaged(f"{error}; delete it to begin again") from None
        if saved.get("key") != self.key:
            raise ValueError(f"{self.path}: a checkpoint of other content or settings; give another path")
        return saved["state"]

    def save(self, state: dict[str, Tensor | Any]) -> None:
        """Writes the state whole, or leaves the file as it was."""
        if self.path is not None:
            nested.save(self.path, _KIND, {"key": self.key, "state": state})
