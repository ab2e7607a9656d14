"""What a method is given from the training split.

A method that has a field of a name in `PROVIDERS` is given its value, in experiments of every kind, unless the
experiment's options set it. Nothing here may see the valid or test split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from data import ClickData
from embcomp.methods import METHODS
from experiments.config import MethodConfig


class Training(Protocol):
    """The training split, as each kind of task shows it."""

    def counts(self) -> Mapping[str, Tensor]:
        """Table -> how often each of its ids occurs, int64 [num_embeddings]."""
        ...


# Field of a method -> what it is given.
PROVIDERS: dict[str, Callable[[Training], Any]] = {
    "counts": lambda training: training.counts(),
}


def provided(method: MethodConfig, training: Training) -> dict[str, Any]:
    """The values of the fields that the method needs from the training split."""
    fields = {field.name for field in dataclasses.fields(METHODS[method.method])} - method.options.keys()
    return {name: give(training) for name, give in PROVIDERS.items() if name in fields}


@cache
def counts_of(folder: Path) -> dict[str, Tensor]:
    """Feature -> how often each id occurs in training, of the encoded clicks in `folder`."""
    clicks = ClickData(folder)
    return {feature: clicks.counts(feature) for feature in clicks.schema.feature_names}
