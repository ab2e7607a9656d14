"""Result files -> one HTML page, or Markdown for the docs. Nothing is computed here but means over seeds."""

from experiments.report.collect import collect
from experiments.report.pages import write_html, write_markdown

__all__ = ["collect", "write_html", "write_markdown"]
