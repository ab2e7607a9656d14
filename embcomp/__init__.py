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
    SemanticIds,
    Table,
    UnifiedEmbedding,
)
from embcomp.semantic_ids.pieces import Ngram, PrefixNgram, Unigram
from embcomp.semantic_ids.sentence_pieces import SentencePieces
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
    "Ngram",
    "PrefixNgram",
    "QuotientRemainder",
    "SemanticIds",
    "SentencePieces",
    "Table",
    "TableReport",
    "UnifiedEmbedding",
    "Unigram",
    "compress_",
    "nbytes",
    "nn",
    "summary",
]
