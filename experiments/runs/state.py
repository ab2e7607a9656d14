"""What a result depends on beside its configuration: what is in the files that the run reads."""

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
    """The run's data section as its key holds it: for own files their content in the place of their path.

    A published data set, in its usual folder, is known by its name; `data_key` says what is in its files.

    Raises:
        InputError: own files that are not there, or a schema that cannot be read.
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
    """A checksum of all source files of the run's data; None where there are none here, or data are generated."""
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
    """What reads the run's data set."""
    return _datasets(run)[run.data.name].read


def _datasets(run: RunConfig) -> Mapping[str, Dataset]:
    return KINDS[run.kind].datasets
