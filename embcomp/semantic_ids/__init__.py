"""Content vectors -> tokenizer -> codes -> pieces: what `embcomp.SemanticIds` makes rows from."""

from embcomp.semantic_ids.neighbours import Neighbours
from embcomp.semantic_ids.pieces import Ngram, Pieces, PrefixNgram, Unigram
from embcomp.semantic_ids.quality import Drift, Quality
from embcomp.semantic_ids.residual_kmeans import ResidualKMeans
from embcomp.semantic_ids.rqvae import RQVAE
from embcomp.semantic_ids.sentence_pieces import SentencePieces
from embcomp.semantic_ids.tokenizer import Tokenizer, load
from embcomp.semantic_ids.vocabulary import Vocabulary

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
