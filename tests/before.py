"""What commit f1f7f9c (embcomp 0.1.0) pickled and saved, before modules moved and `SemanticIds` fell into parts."""

import gzip
import io
from functools import cache
from pathlib import Path
from typing import Any

import torch

SAVED = Path(__file__).parent / "saved"


@cache
def pickled() -> dict[str, Any]:
    """Modules, their state dicts, and what they gave."""
    return torch.load(io.BytesIO(gzip.decompress((SAVED / "before_folders.pt.gz").read_bytes())), weights_only=False)
