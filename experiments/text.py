"""The names of `experiments.tasks.text`, under their former module."""

from experiments.tasks.text import embed, films, texts_of, vectors_file

__all__ = ["embed", "films", "texts_of", "vectors_file"]
