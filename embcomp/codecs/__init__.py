"""Codecs: rows in the form that is trained -> the same vectors as they will be served."""

from embcomp.codecs.base import Codec, Coding, coded_tables

__all__ = ["Codec", "Coding", "coded_tables"]
