"""The names of tables. Features are named like their columns, but not every such name is valid for a module."""

from __future__ import annotations

from functools import cache
from glob import has_magic
from urllib.parse import quote

from torch import nn


@cache
def table_name(feature: str) -> str:
    """Return the name of a feature's table: its own if a module can have it, else a spelling that no column has.

    Modules refuse dots and the names of their own attributes (`items`, `type`, `train`), and characters of glob
    patterns would match other tables.

    >>> table_name("item"), table_name("items"), table_name("item.cat")
    ('item', '%items', '%item%2Ecat')
    """
    plain = feature and not hasattr(nn.ModuleDict(), feature) and not has_magic(feature)
    if plain and not any(char in feature for char in "./%"):
        return feature
    return "%" + quote(feature, safe="").replace(".", "%2E")
