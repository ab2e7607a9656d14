"""Text and JSON files that are written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from embcomp.files import write


def write_text(path: Path, text: str) -> None:
    write(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
