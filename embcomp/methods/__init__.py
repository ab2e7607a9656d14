"""The compression methods, one file for each family; `base` defines what they share."""

from embcomp.methods.base import METHODS, Method, Table
from embcomp.methods.bit_cipher import BitCipher
from embcomp.methods.clustered_hash import ClusteredHash
from embcomp.methods.dedup import Dedup
from embcomp.methods.deep_hash import DeepHash
from embcomp.methods.frequency import FrequencyHash
from embcomp.methods.frequency_bits import FrequencyBits
from embcomp.methods.full import Full
from embcomp.methods.graph import DoubleGraphHash, GraphHash, LSHash, SoftGraphHash
from embcomp.methods.hashing import DoubleHash, HashEmbedding, HashingTrick, MultiHash
from embcomp.methods.hot_rows import HotRows
from embcomp.methods.learned_mask import LearnedMask
from embcomp.methods.learned_widths import LearnedWidths
from embcomp.methods.low_bit import LowBit
from embcomp.methods.low_rank import LowRank
from embcomp.methods.mixed_dimensions import MixedDimensions
from embcomp.methods.nested import Nested
from embcomp.methods.product_codes import ProductCodes
from embcomp.methods.pruned import Pruned
from embcomp.methods.quotient_remainder import QuotientRemainder
from embcomp.methods.robe import ROBE
from embcomp.methods.semantic.method import SemanticIds
from embcomp.methods.tensor_train import TensorTrain
from embcomp.methods.unified import UnifiedEmbedding

__all__ = [
    "METHODS",
    "ROBE",
    "BitCipher",
    "ClusteredHash",
    "Dedup",
    "DeepHash",
    "DoubleGraphHash",
    "DoubleHash",
    "FrequencyBits",
    "FrequencyHash",
    "Full",
    "GraphHash",
    "HashEmbedding",
    "HashingTrick",
    "HotRows",
    "LSHash",
    "LearnedMask",
    "LearnedWidths",
    "LowBit",
    "LowRank",
    "Method",
    "MixedDimensions",
    "MultiHash",
    "Nested",
    "ProductCodes",
    "Pruned",
    "QuotientRemainder",
    "SemanticIds",
    "SoftGraphHash",
    "Table",
    "TensorTrain",
    "UnifiedEmbedding",
]
