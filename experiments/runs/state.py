"""The inputs of a result beside its configuration: the content of the files that the run reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import data
from data.fingerprint import fingerprint
from data.registry import Dataset, content_of
from experiments.config import RunConfig
from experiments.errors import InputError
from experiments.tasks.content import needs_codes
from experiments.tasks.task import KINDS
from experiments.tasks.text import vectors_file


def data_config(run: RunConfig) -> dict[str, Any]:
    """Return the run's data section as its key holds it: your own files by their content instead of their path.

    A published data set in its usual folder is identified by its name; `data_key` covers the content of its files.

    Raises:
        InputError: your own files do not exist, or a schema cannot be read.
    """
    options = dict(run.data.options)
    dataset = _datasets(run)[run.data.name]
    if dataset.files is None or not ("folder" in options or dataset.folder is None):
        return {"name": run.data.name, "options": options}
    try:
        given = {name: value for name, value in options.items() if name in dataset.options}
        if "schema" in given:
            options |= dataset.resolve(given)
        files = content_of(_datasets(run), run.data.name, folder=options.pop("folder", None))
    except data.DataError as error:
        raise InputError(f"data {run.data.name!r}: {error}") from error
    if files is None:
        raise InputError(
            f"data {run.data.name!r}: no files at {run.data.options.get('folder')!r}; options.folder is relative to "
            "the folder that EMBCOMP_DATA names"
        )
    return {"name": run.data.name, "options": options, "files": [checksum for _, checksum in files]}


def data_key(run: RunConfig) -> str | None:
    """Return a checksum of all source files of the run's data; None if there are none here, or data are generated."""
    try:
        files = content_of(_datasets(run), run.data.name, folder=run.data.options.get("folder"))
    except data.DataError as error:
        raise InputError(f"data {run.data.name!r}: {error}") from error
    if not files:
        return None
    content = vectors_file(run.data.name)
    if (run.method.content or needs_codes(run.method.options) or run.section.needs_content) and content.is_file():
        files = [*files, ("content", fingerprint(content))]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]


def reader(run: RunConfig) -> Any:
    """Return the function that reads the run's data set."""
    return _datasets(run)[run.data.name].read


def _datasets(run: RunConfig) -> Mapping[str, Dataset]:
    return KINDS[run.kind].datasets
