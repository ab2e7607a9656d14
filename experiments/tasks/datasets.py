"""The data of runs, by name. The last data are kept, because consecutive runs of an experiment use the same.

They are read again where the content of a file has changed meanwhile.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import data
from data.registry import DATASETS, INTERACTIONS, SEQUENCES, content_of
from experiments.config import DataConfig
from experiments.errors import InputError


def load_data(load: Callable[..., Any], config: DataConfig) -> Any:
    """Return the data that a loader of `data` reads, or has read for the run before.

    Raises:
        InputError: the data are wrong; the error names them.
    """
    return _loaded(
        load, config.name, json.dumps(config.options), os.environ.get("EMBCOMP_DATA"), _content(load, config)
    )


def _content(load: Callable[..., Any], config: DataConfig) -> str:
    """The checksums of the files that will be read, and what a schema in a file says."""
    registries = {data.load: DATASETS, data.load_interactions: INTERACTIONS, data.load_sequences: SEQUENCES}
    try:
        datasets = registries[load]
        files = content_of(datasets, config.name, folder=config.options.get("folder"))
        given = {name: value for name, value in config.options.items() if name in datasets[config.name].options}
        return json.dumps([files, datasets[config.name].resolve(given) if "schema" in given else None], default=str)
    except data.DataError:
        return ""  # reading says what is wrong


@lru_cache(maxsize=1)
def _loaded(load: Callable[..., Any], name: str, options: str, root: str | None, content: str) -> Any:
    try:
        return load(name, root=root, **json.loads(options))
    except data.DataError as error:
        raise InputError(f"data {name!r}: {error}") from error
