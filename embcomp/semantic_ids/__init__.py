"""Semantic ids: from content vectors to codes by a tokenizer, and from codes to pieces, for `embcomp.SemanticIds`."""

from embcomp.semantic_ids.neighbours import Neighbours
from embcomp.semantic_ids.pieces.base import Ngram, Pieces, PrefixNgram, Unigram
from embcomp.semantic_ids.pieces.sentence_pieces import SentencePieces
from embcomp.semantic_ids.pieces.vocabulary import Vocabulary
from embcomp.semantic_ids.tokenizers.base import Tokenizer, load
from embcomp.semantic_ids.tokenizers.quality import Drift, Quality
from embcomp.semantic_ids.tokenizers.residual_kmeans import ResidualKMeans
from embcomp.semantic_ids.tokenizers.rqvae import RQVAE

__all__ = [
    "RQVAE",
    "Drift",
    "Neighbours",
    "Ngram",
    "Pieces",
    "PrefixNgram",
    "Quality",
    "ResidualKMeans",
    "SentencePieces",
    "Tokenizer",
    "Unigram",
    "Vocabulary",
    "load",
]
