"""Pieces: the parts of a code tuple that read a row each."""

from embcomp.semantic_ids.pieces.base import PIECES, Ngram, Pieces, PrefixNgram, Unigram
from embcomp.semantic_ids.pieces.sentence_pieces import SentencePieces
from embcomp.semantic_ids.pieces.vocabulary import Vocabulary

__all__ = ["PIECES", "Ngram", "Pieces", "PrefixNgram", "SentencePieces", "Unigram", "Vocabulary"]
