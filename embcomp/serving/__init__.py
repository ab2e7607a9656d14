"""`embcomp.export`: a trained model as one file to serve, with quantised tables."""

from embcomp.serving.archive import load
from embcomp.serving.export import export
from embcomp.serving.report import ExportReport, TableExport

__all__ = ["ExportReport", "TableExport", "export", "load"]
