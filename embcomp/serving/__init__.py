"""`embcomp.export`: a trained model as one file to serve, with quantised tables."""

from embcomp.serving.archive import load, version_of
from embcomp.serving.export import export
from embcomp.serving.report import ExportReport, TableExport

__all__ = ["ExportReport", "TableExport", "export", "load", "version_of"]
