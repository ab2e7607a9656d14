"""The data of runs, by name. The last data are kept, because consecutive runs of an experiment use the same."""

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
    """Return the data that a loader of `data` reads, or has read for the run before.

    Raises:
        InputError: the data are wrong; the error names them.
    """
    return _loaded(load, config.name, json.dumps(config.options), os.environ.get("EMBCOMP_DATA"))


@lru_cache(maxsize=1)
def _loaded(load: Callable[..., Any], name: str, options: str, root: str | None) -> Any:
    try:
        return load(name, root=root, **json.loads(options))
    except data.DataError as error:
        raise InputError(f"data {name!r}: {error}") from error
