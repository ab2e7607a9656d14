"""The times of a look-up and of a training step, from the committed result of `python -m experiments bench frame`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

_FULL = "Full"
LOOK_UP, STEP = "look-up", "training step"


def times(results: Path, kind: str = LOOK_UP) -> Mapping[str, float]:
    """Return the time of each method as a multiple of that of a full table; empty where the bench has not been run.

    Names are those of classes, with that of the method inside: "LowBit(UnifiedEmbedding)".

    Args:
        results: the folder of result files.
        kind: `LOOK_UP` or `STEP`.
    """
    path = results / "bench" / "frame.json"
    if not path.is_file():
        return {}
    rows = [row for row in json.loads(path.read_text()) if row["against"] == _FULL]
    split = [(*row["name"].rsplit(": ", 1), row["ratio"]) for row in rows]
    return {_FULL: 1.0, **{name: ratio for name, what, ratio in split if what == kind}}
