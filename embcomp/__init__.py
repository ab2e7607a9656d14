"""embcomp: small embedding tables for recommender models."""

from embcomp import nn
from embcomp.compress import CompressionReport, TableReport, compress_
from embcomp.methods import (
    METHODS,
    DoubleHash,
    FrequencyHash,
    Full,
    HashEmbedding,
    HashingTrick,
    Method,
    MultiHash,
    QuotientRemainder,
    Table,
    UnifiedEmbedding,
)
from embcomp.sizes import nbytes, summary

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "CompressionReport",
    "DoubleHash",
    "FrequencyHash",
    "Full",
    "HashEmbedding",
    "HashingTrick",
    "Method",
    "MultiHash",
    "QuotientRemainder",
    "Table",
    "TableReport",
    "UnifiedEmbedding",
    "compress_",
    "nbytes",
    "nn",
    "summary",
]
