"""Behaviour sequences of any length at a constant cost per candidate. `SDIM` needs torch alone."""

from embcomp.sdim.buckets import Buckets
from embcomp.sdim.sdim import SDIM
from embcomp.sdim.signatures import ItemSignatures

__all__ = ["SDIM", "Buckets", "ItemSignatures"]
