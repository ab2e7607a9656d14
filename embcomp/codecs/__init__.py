"""Codecs: from rows in the training form to the vectors that will be served."""

from importlib import import_module
from typing import Any

from embcomp.codecs.base import Codec, Coding

__all__ = ["Codec", "Coding"]


def __getattr__(name: str) -> Any:
    if name == "coded_tables":  # which was here once
        return import_module("embcomp.holders").coded_tables
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
