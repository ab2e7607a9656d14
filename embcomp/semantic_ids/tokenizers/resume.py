"""The saved state of a fit, from which an interrupted fit continues."""

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
    """The state of a fit in one file; without a path nothing is saved.

    Args:
        path: the file.
        inputs: the inputs of the fit; a file with other inputs is refused.
    """

    def __init__(self, path: Path | None, inputs: dict[str, Any]) -> None:
        self.path = path
        plain = {name: checksum(value) if isinstance(value, Tensor) else value for name, value in inputs.items()}
        text = json.dumps(plain, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()

    def load(self) -> dict[str, Any]:
        """Return the saved state, empty if there is none.

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
        """Write the state whole, or leave the file unchanged."""
        if self.path is not None:
            nested.save(self.path, _KIND, {"key": self.key, "state": state})
