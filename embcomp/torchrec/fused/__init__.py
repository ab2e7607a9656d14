"""The tables that are updated inside the backward pass."""

from embcomp.torchrec.fused.tables import FusedTables, _Row  # noqa: F401  # pyright: ignore (pickles name it here)

__all__ = ["FusedTables"]
