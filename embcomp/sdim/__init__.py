"""Behavior sequences of any length at a constant cost per candidate, and the store that serves them.

`SDIM` needs torch alone; the store needs the extra `serving` and is imported when it is first named.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from embcomp.extras import install
from embcomp.sdim.buckets import Buckets
from embcomp.sdim.errors import CorruptRecord, StampMismatch, StoreDamaged, StoreError, StoreFull, StoreUnavailable
from embcomp.sdim.sdim import SDIM
from embcomp.sdim.signatures import ItemSignatures

if TYPE_CHECKING:
    from embcomp.sdim.encoder import BehaviorEncoder
    from embcomp.sdim.store import BehaviorStore

_SERVING = {"BehaviorEncoder": "embcomp.sdim.encoder", "BehaviorStore": "embcomp.sdim.store"}

__all__ = [
    "SDIM",
    "BehaviorEncoder",
    "BehaviorStore",
    "Buckets",
    "CorruptRecord",
    "ItemSignatures",
    "StampMismatch",
    "StoreDamaged",
    "StoreError",
    "StoreFull",
    "StoreUnavailable",
]


def __getattr__(name: str) -> Any:
    if name not in _SERVING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_SERVING[name]), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name} needs {error.name}: {install('serving')}") from error
