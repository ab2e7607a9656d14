"""The files of older versions: `before_codecs` is of commit 801e1bd, `before_folders` of f1f7f9c (embcomp 0.1.0).

The first was pickled before there were codecs, and before combiners were modules; the second before modules moved and
`SemanticIds` fell into parts.
"""

import gzip
import io
from functools import cache
from pathlib import Path
from typing import Any

import torch

SAVED = Path(__file__).parent / "saved"


@cache
def pickled(name: str = "before_folders") -> dict[str, Any]:
    """Modules, their state dicts, and what they gave."""
    return read(name)


def read(name: str) -> dict[str, Any]:
    """Unpickle a file anew, for tests that change what they read."""
    return torch.load(io.BytesIO(gzip.decompress((SAVED / f"{name}.pt.gz").read_bytes())), weights_only=False)
