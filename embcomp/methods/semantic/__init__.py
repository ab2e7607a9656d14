"""Semantic ids as a method: one configuration, its encoder, and the maps that encoders share."""

from embcomp.methods.semantic.encoder import SemanticEncoder
from embcomp.methods.semantic.method import MOST_PIECES, SemanticIds
from embcomp.methods.semantic.reading import Range
from embcomp.methods.semantic.support import SupportReport

NeighbourEncoder = SemanticEncoder  # in pickles of before, of items with neighbours

__all__ = ["MOST_PIECES", "NeighbourEncoder", "Range", "SemanticEncoder", "SemanticIds", "SupportReport"]
