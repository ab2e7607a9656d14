"""The names of `experiments.config.load`, which was here."""

from experiments.config.load import CONFIGS, check, find, load

__all__ = ["CONFIGS", "check", "find", "load"]
