"""`python -m experiments nightly`: a model of news that is retrained every night, seven nights long."""

from experiments.studies.nightly.page import write_markdown
from experiments.studies.nightly.runs import run_all

__all__ = ["run_all", "write_markdown"]
