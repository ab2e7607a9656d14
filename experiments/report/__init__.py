"""Reports of result files: one HTML page, or Markdown for the docs. Only means over seeds are computed here."""

from experiments.report.collect import collect
from experiments.report.pages import write_html, write_markdown

__all__ = ["collect", "write_html", "write_markdown"]
