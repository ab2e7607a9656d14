"""Codecs: from rows in the training form to the vectors that will be served."""

from embcomp.codecs.base import Codec, Coding, coded_tables

__all__ = ["Codec", "Coding", "coded_tables"]
