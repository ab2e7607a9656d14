"""Seeds that keep the ids of small tables apart: permuted ids may still read the same rows in another order."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import torch

from embcomp.methods.base import Method
from embcomp.methods.budget import SMALL
from embcomp.methods.table import Table

M = TypeVar("M", bound=Method)

SEEDS = 1000
"""The seeds to try. Half of all permutations of a few rows swap two of them, so ten small tables need about as many."""


def keep_apart(method: M, tables: Sequence[Table], *, in_order: bool) -> M:
    """Return the method with the first seed, from its own on, for which ids of small tables do not read the same rows.

    Only tables that have a row for each id count. If there is no such seed, the method stays as it is.

    Args:
        method: a method with a setting `seed`, whose rows are permuted.
        tables: the tables that it stores.
        in_order: True if the rows of an id are put side by side, False if they are added up.
    """
    for seed in range(method.seed, method.seed + SEEDS):  # pyright: ignore[reportAttributeAccessIssue]
        tried = dataclasses.replace(method, seed=seed)
        if all(_distinct(tried, table, in_order) for table in tables if (table.num_embeddings or 2**62) <= SMALL):
            return tried
    return method


def _distinct(method: Method, table: Table, in_order: bool) -> bool:
    plan = method.plan([table])
    ids = table.num_embeddings or 0
    if plan.stores[table.name].rows < ids:
        return True
    read = torch.cat([part.rows for part in plan.tables[0].encoder.encode(torch.arange(ids))], 1)
    read = read if in_order else read.sort(1).values
    return read.unique(dim=0).shape[0] == ids
