"""Data of runs, by name; runs of one experiment follow each other, so that what one has read the next may use."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import data
from experiments.config import DataConfig
from experiments.errors import InputError


def load_data(load: Callable[..., Any], config: DataConfig) -> Any:
    """What a loader of `data` reads, or has read for the run before.

    Raises:
        InputError: bad data; names it.
    """
    return _loaded(load, config.name, json.dumps(config.options), os.environ.get("EMBCOMP_DATA"))


@lru_cache(maxsize=1)
def _loaded(load: Callable[..., Any], name: str, options: str, root: str | None) -> Any:
    try:
        return load(name, root=root, **json.loads(options))
    except data.DataError as error:
        raise InputError(f"data {name!r}: {error}") from error
