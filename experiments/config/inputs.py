"""The inputs of a method that are taken from the training split.

A method with a field whose name is a key of `PROVIDERS` gets that input, in experiments of every kind, unless the
experiment's options set the field. The code here must not read the valid or test split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from data import ClickData
from embcomp.graph import Edges, interactions
from embcomp.graph.cluster_map import Side
from embcomp.methods import METHODS


class Training(Protocol):
    """The training split, as each kind of task provides it."""

    def counts(self) -> Mapping[str, Tensor]:
        """Return how often each id occurs, int64 [num_embeddings], by table."""
        ...

    def edges(self) -> Tensor:
        """Return the pairs of user and item, int64 [2, E].

        Raises:
            InputError: the configuration does not say which are users and which items.
        """
        ...

    def sides(self) -> Mapping[str, Side]:
        """Return "users" for the table of the users, "items" for that of the items."""
        ...


# Field of a method -> the settings that stand in for it. Mostly the field itself; where what it holds depends on the
# budget, settings from which the method's `for_budget` makes it (edges in the place of clusters).
PROVIDERS: dict[str, Callable[[Training], dict[str, Any]]] = {
    "counts": lambda training: {"counts": training.counts()},
    "clusters": lambda training: {"edges": edges_of(training), "sides": training.sides()},
    "features": lambda training: {
        "features": {table: (edges_of(training), side) for table, side in training.sides().items()}
    },
    "weights": lambda training: {},  # of a mixture: `for_budget` makes them with the clusters
}


@lru_cache(maxsize=1)
def edges_of(training: Training) -> Edges:
    """Return the graph of a training split. The last is kept, because consecutive runs have the same."""
    pairs, counts = training.edges(), training.counts()
    users, items = (len(counts[table]) for table in training.sides())
    return interactions((pairs[0].numpy(), pairs[1].numpy()), num_users=users, num_items=items)


def provided(name: str, options: Mapping[str, Any], training: Training) -> dict[str, Any]:
    """Return the settings that a method takes from the training split, except those that its options set."""
    fields = {field.name for field in dataclasses.fields(METHODS[name])} - options.keys()
    given = [give(training) for name, give in PROVIDERS.items() if name in fields]
    return {name: value for settings in given for name, value in settings.items()}


@cache
def counts_of(folder: Path) -> dict[str, Tensor]:
    """Return how often each id occurs in training, by feature, of the encoded clicks in `folder`."""
    clicks = ClickData(folder)
    return {feature: clicks.counts(feature) for feature in clicks.schema.feature_names}
