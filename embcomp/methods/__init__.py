"""One file per method family; see `base` for the contract that they share."""

from embcomp.methods.base import METHODS, Method, Table
from embcomp.methods.frequency import FrequencyHash
from embcomp.methods.full import Full
from embcomp.methods.hashing import DoubleHash, HashEmbedding, HashingTrick, MultiHash
from embcomp.methods.quotient_remainder import QuotientRemainder
from embcomp.methods.semantic_ids import SemanticIds
from embcomp.methods.unified import UnifiedEmbedding

__all__ = [
    "METHODS",
    "DoubleHash",
    "FrequencyHash",
    "Full",
    "HashEmbedding",
    "HashingTrick",
    "Method",
    "MultiHash",
    "QuotientRemainder",
    "SemanticIds",
    "Table",
    "UnifiedEmbedding",
]
