"""The methods that are made of trained vectors, those of the full tables of the same run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from embcomp.methods import METHODS, Method
from experiments.config.schema import MethodConfig

VECTORS = "vectors"
"""The field of a method that takes trained vectors."""


def takes_vectors(method: MethodConfig) -> bool:
    """Return whether the method, or one inside it, needs trained vectors."""
    return made_of_vectors(method.method, method.options)


def made_of_vectors(name: str, options: Mapping[str, Any]) -> bool:
    """Return whether a method of these options, or one inside it, needs trained vectors."""
    inside = options.get("of")
    if isinstance(inside, Mapping) and made_of_vectors(str(inside.get("method")), inside):
        return True
    return name in METHODS and VECTORS in {field.name for field in dataclasses.fields(METHODS[name])}


def with_vectors(method: Method, vectors: Mapping[str, Any]) -> Method:
    """Return the method with these trained vectors, by table, wherever it or one inside it takes them."""
    given: dict[str, Any] = {}
    if hasattr(method, VECTORS):
        given[VECTORS] = dict(vectors)
    if isinstance(inside := getattr(method, "of", None), Method):
        given["of"] = with_vectors(inside, vectors)
    return dataclasses.replace(method, **given) if given else method
