"""The replacement of the tables of a model by compressed ones, fresh or fitted to what was trained: `compress_`."""

from embcomp.compress.compress import CompressionReport, TableReport, compress_

__all__ = ["CompressionReport", "TableReport", "compress_"]
