"""The checks of an experiment that need no data: for all kinds of runs, and helpers for each kind."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data import DataError
from data.registry import Dataset, is_like
from embcomp.methods import METHODS
from experiments.config.codes import code_problems
from experiments.config.inputs import PROVIDERS
from experiments.config.options import hint, misfits, plain, unknown
from experiments.config.schema import DataConfig, ExperimentConfig, MethodConfig, ModelConfig
from experiments.config.trained import VECTORS, made_of_vectors, takes_vectors


def common_problems(experiment: ExperimentConfig) -> Iterator[str]:
    """Yield the problems of the sections that runs of every kind have."""
    for name, rows in experiment.slices.items():
        if rows.max_count is not None and rows.max_count < rows.min_count:
            yield f"slices.{name}: max_count {rows.max_count} is below min_count {rows.min_count}"
    for model in experiment.model:
        if model.init_uniform is not None and model.init_normal is not None:
            yield "model: give init_uniform or init_normal, not both"
    for number, method in enumerate(experiment.methods):
        yield from _method(method, f"methods[{number}]")


def data_problems(data: DataConfig, datasets: Mapping[str, Dataset]) -> Iterable[str]:
    """Yield the problems of the name of the data set, or of its options."""
    if data.name not in datasets:
        yield f"data.name: unknown data set {data.name!r}{hint(data.name, datasets)}"
        return
    dataset = datasets[data.name]
    known = {**dataset.options, "folder": ""}
    yield from unknown("data.options", data.options, known)
    for name, default in known.items():
        value = 0 if name == "seed" and data.options.get(name) == "run" else data.options.get(name, default)
        if value is inspect.Parameter.empty:
            yield f"data.options: data set {data.name!r} needs the option {name!r}"
        elif not is_like(value, default):
            yield f"data.options.{name}: must be like its default {default!r}, not {value!r}"
        elif name == "schema" and not isinstance(value, str):
            try:
                dataset.resolve({name: value})
            except DataError as error:
                yield f"data.options.schema: {error}"
    folder = Path(str(data.options.get("folder", "")))
    if folder.is_absolute():
        yield f"data.options.folder: {folder} is absolute; name it relative to EMBCOMP_DATA, for others to run it too"


def monitor_problems(experiment: ExperimentConfig, metric: str) -> Iterator[str]:
    """Yield a problem if the runs lack the monitored metric, which needs a rank if `metric` does ("recall@20")."""
    monitor = experiment.training.monitor
    if ("@" in monitor) != ("@" in metric):
        kind = "retrieval" if "@" in metric else "click-through"
        yield f"training.monitor: a {kind} run has no {monitor}; set it, for example, to 'valid/{metric}'"


def clicks_only_problems(experiment: ExperimentConfig, retrieval: bool = False) -> Iterator[str]:
    """Yield a problem for each setting of a method that only click-through runs have, for other kinds of runs.

    Args:
        retrieval: True for retrieval runs, which have most of these settings.
    """
    for number, method in enumerate(experiment.methods):
        given = {
            "after_training": method.after_training,
            "fine_tuned": method.from_trained,
            "by_table": bool(method.by_table),
        }
        if method.apart:
            yield f"methods[{number}].apart: only click-through runs have it; leave it out"
        elif not retrieval and (key := next((key for key, is_given in given.items() if is_given), None)):
            yield f"methods[{number}].{key}: only click-through and retrieval runs have it; leave it out"


def known_model(
    model: ModelConfig, models: Mapping[str, type], given: set[str]
) -> Generator[str, None, Mapping[str, Any]]:
    """Yield the problems of the name and options, and return the parameters of the model."""
    cls = {plain(name): cls for name, cls in models.items()}.get(plain(model.name))
    if cls is None:
        yield f"model.name: unknown model {model.name!r}{hint(model.name, models)}"
        return {}
    parameters = inspect.signature(cls.__init__).parameters
    yield from unknown("model.options", model.options, set(parameters) - given)
    yield from misfits("model.options", model.options, cls)
    return parameters


def _method(config: MethodConfig, key: str) -> Iterable[str]:
    cls = METHODS.get(config.method)
    if cls is None:
        yield f"{key}.method: unknown method {config.method!r}{hint(config.method, METHODS)}"
        return
    fields = {field.name: field for field in dataclasses.fields(cls)}
    yield from unknown(f"{key}.options", config.options, [*fields, *cls.budget_settings])
    yield from misfits(f"{key}.options", config.options, cls)
    if "pieces" in fields:  # its codes are those of items
        yield from code_problems(f"{key}.options", config.options)
    yield from _inside(config.options.get("of"), f"{key}.options.of")
    given = [kind for kind in ("rows", "nbytes", "share") if getattr(config, kind) is not None]
    if "rows" in config.options:
        given.append("options.rows")
    if len(given) > 1:
        yield f"{key}: give one budget, not {' and '.join(given)}"
    if config.rows is not None and "rows" not in fields:
        yield f"{key}.rows: {config.method} has no rows; give nbytes or share"
    if config.from_trained and config.method == "Full" and not config.by_table:
        name = "after_training" if config.after_training else "fine_tuned"
        yield f"{key}.{name}: needs a method that is fitted to the trained full tables"
    if config.after_training and config.fine_tuned is not None:
        yield f"{key}: give after_training or fine_tuned, not both; the first trains nothing after the fit"
    if takes_vectors(config) and not config.from_trained:
        yield f"{key}: {config.method} is made of trained vectors: add fine_tuned = 1.0, or after_training = true"
    if config.apart and (config.nbytes or config.share):
        yield f"{key}.apart: each table has the size in the options; leave nbytes and share out"
    for table, inside in config.by_table.items():
        yield from _inside(inside, f"{key}.by_table.{table}")
        if made_of_vectors(str(inside.get("method")), inside):
            yield f"{key}.by_table.{table}: methods made of trained vectors are for all tables; leave it out"
    if config.by_table and (budget := next((kind for kind in given if kind != "options.rows"), None)):
        yield f"{key}.by_table: each method has its size in its options; leave {budget} out"
    if config.by_table and (config.table or config.apart):
        yield f"{key}.by_table: give it without {'table' if config.table else 'apart'}"
    if config.content and len(config.tables) != 1:
        yield f"{key}.content: name the table of the content vectors in {key}.table"
    known = {*config.options, *PROVIDERS, VECTORS}
    needs = [name for name in fields if _required(fields[name]) and name not in known]
    if needs and not given:
        yield f"{key}: {config.method} needs {' and '.join(needs)}: give rows, nbytes or share"
    elif config.rows is not None and (missing := [name for name in needs if name != "rows"]):
        yield f"{key}.options: {config.method} with rows needs {' and '.join(missing)}"


def _inside(of: Any, key: str) -> Iterable[str]:
    """Yield the problems of the method inside a wrapper, { method = "UnifiedEmbedding", balanced = true }."""
    if of is None:
        return
    if not isinstance(of, dict) or not isinstance(of.get("method"), str):
        yield f'{key}: name a method and its settings, such as {{ method = "Full" }}, not {of!r}'
        return
    cls = METHODS.get(of["method"])
    if cls is None:
        yield f"{key}.method: unknown method {of['method']!r}{hint(of['method'], METHODS)}"
        return
    fields = [field.name for field in dataclasses.fields(cls)]
    settings = {name: value for name, value in of.items() if name != "method"}
    yield from unknown(key, settings, [*fields, *cls.budget_settings])
    yield from misfits(key, settings, cls)
    if "pieces" in fields:
        yield from code_problems(key, settings)
    yield from _inside(of.get("of"), f"{key}.of")


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
