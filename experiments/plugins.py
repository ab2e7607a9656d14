"""Your own methods, models, readers and loggers, from outside of this project.

    # mine.py
    from data.registry import DATASETS, Dataset
    from embcomp.methods.base import Method
    from experiments.plugins import add_model

    class MyMethod(Method): ...                      # methods register themselves
    add_model(MyModel)                               # a click-through, retrieval or sequence model
    DATASETS["mine"] = Dataset(read, files, "mine")  # also INTERACTIONS, SEQUENCES
    LOGGERS["mine"] = MyLogger                       # of experiments.loggers

    python -m experiments run my.toml --import mine

From an installed wheel the packages are called `embcomp_data` and `embcomp_experiments`, and so is the command.
Installed packages are found without `--import`, by the entry point group `embcomp.experiments`, each a module.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from torch import nn

from embcomp.methods import METHODS
from experiments.config import RunConfig
from experiments.errors import InputError
from recsys_models.build import MODELS, RETRIEVAL_MODELS, SEQUENCE_MODELS
from recsys_models.retrieval import RetrievalModel
from recsys_models.sequence import SequenceModel

GROUP = "embcomp.experiments"
_OURS = ("embcomp", "recsys_models", "data", "experiments", "embcomp_data", "embcomp_experiments")  # see hatch_build.py


def load(modules: Iterable[str] = ()) -> None:
    """Import the modules of installed entry points, and those that are named: `package.module`, or a file `mine.py`.

    Raises:
        InputError: a module does not exist or cannot be imported.
    """
    named = [(entry.name, entry.value) for entry in entry_points(group=GROUP)]
    for origin, module in [*named, *((f"--import {module}", module) for module in modules)]:
        name = module
        if module.endswith(".py"):
            path = Path(module).resolve()
            if not path.is_file():
                raise InputError(f"{origin}: no such file")
            name = path.stem
            sys.path[:0] = [] if str(path.parent) in sys.path else [str(path.parent)]
        try:
            import_module(name)
        except Exception as error:
            raise InputError(f"{origin}: cannot be imported: {type(error).__name__}: {error}") from error


def add_model(model: type[nn.Module]) -> None:
    """Register a model under its class name with the others of its kind: retrieval, sequence or click-through.

    Raises:
        InputError: another model has this name.
    """
    kinds: dict[type, dict[str, Any]] = {RetrievalModel: RETRIEVAL_MODELS, SequenceModel: SEQUENCE_MODELS}
    models = next((models for kind, models in kinds.items() if issubclass(model, kind)), MODELS)
    if models.setdefault(model.__name__, model).__module__ != model.__module__:
        raise InputError(f"there is a model {model.__name__} already; give yours another name")
    models[model.__name__] = model


def code_key(run: RunConfig, read: Any) -> list[str]:
    """Return the checksums of the files of your own code that the run uses; empty for most runs.

    Args:
        read: the reader of the data set.
    """
    return [_checksum(path) for path in sorted(set(_files(run, read)))]


def _files(run: RunConfig, read: Any) -> Iterator[str]:
    models = {name.lower(): model for name, model in {**MODELS, **RETRIEVAL_MODELS, **SEQUENCE_MODELS}.items()}
    methods = [METHODS.get(run.method.method)]
    for method in (run.method.options.get("of"), *run.method.by_table.values()):
        while isinstance(method, dict):
            methods.append(METHODS.get(str(method.get("method"))))
            method = method.get("of")
    for used in (*methods, models.get(run.model.name.lower()), read):
        if used is not None and used.__module__.split(".")[0] not in _OURS:
            yield inspect.getsourcefile(inspect.unwrap(used)) or ""


@cache
def _checksum(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if path else ""
