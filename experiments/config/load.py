"""TOML files -> checked experiments. Everything that can be known without data is checked before anything runs."""

from __future__ import annotations

import dataclasses
import inspect
import json
import tomllib
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data import DataError
from data.registry import DATASETS, INTERACTIONS, SEQUENCES, Dataset, is_like
from data.values import no_settings
from embcomp.methods import METHODS
from experiments.config.codes import code_problems
from experiments.config.inputs import PROVIDERS
from experiments.config.options import hint, misfits, plain, unknown
from experiments.config.schema import (
    BehaviorConfig,
    DataConfig,
    ExperimentConfig,
    GraphConfig,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    PoolingConfig,
    RetrievalConfig,
    SliceConfig,
    TrainingConfig,
)
from experiments.errors import InputError
from recsys_models.behavior import POOLINGS, BehaviorModel
from recsys_models.build import MODELS, RETRIEVAL_MODELS
from recsys_models.search import ATTENTIONS, Search

CONFIGS = Path(__file__).parents[1] / "configs"
_LONGEST_NAME = 230  # of 255 bytes, which leaves room for ".json.<process>.part"
_SECTIONS: dict[str, Any] = {
    "data": DataConfig,
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "training": TrainingConfig,
    "retrieval": RetrievalConfig,
    "behavior": BehaviorConfig,
    "graph": GraphConfig,
    "methods": MethodConfig,
    "slices": SliceConfig,
}


def find(paths: Iterable[Path]) -> list[Path]:
    """The TOML files among `paths` and in the folders among them. A bare name is one of `experiments/configs`."""
    files: list[Path] = []
    for path in paths:
        known = CONFIGS / f"{path}.toml"
        if path.is_dir():
            inside = sorted(path.rglob("*.toml"))
            if not inside:
                raise InputError(f"{path}: the folder holds no .toml file")
            files += inside
        elif path.is_file():
            files.append(path)
        elif known.is_file():
            files.append(known)
        else:
            names = sorted(file.stem for file in CONFIGS.glob("*.toml"))
            raise InputError(f"{path}: no such file{hint(str(path.stem), names)}")
    return list(dict.fromkeys(files))


def load(path: Path) -> ExperimentConfig:
    """Read and check one file.

    Raises:
        InputError: not TOML (with the line), unknown or missing keys, values of the wrong type, unknown names.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise InputError(f"{path}: not valid TOML: nested too deeply") from None
    return check(values, str(path), path.stem)


def check(values: dict[str, Any], place: str, default_name: str = "experiment") -> ExperimentConfig:
    """Values as TOML gives them -> an experiment; `place` goes into messages."""
    if said := list(no_settings(values)):
        raise InputError("\n".join(f"{place}: {problem}" for problem in said))
    try:
        # As JSON, because strict validation takes tables and arrays for dataclasses and tuples only there.
        text = json.dumps({"experiment": default_name, **values})
        experiment = TypeAdapter(ExperimentConfig).validate_json(text, strict=True)
    except ValidationError as error:
        raise InputError("\n".join(f"{place}: {_explain(e, values)}" for e in error.errors())) from None
    problems = [*_monitor(experiment), *_slices(experiment)]
    for model in experiment.model:
        problems += _model(model)
    problems += _after_training(experiment)
    if experiment.behavior is not None:
        problems += [*_data(experiment.data, SEQUENCES), *_behavior(experiment, experiment.behavior)]
    elif experiment.retrieval is not None:
        problems += [*_data(experiment.data, INTERACTIONS), *_retrieval(experiment, experiment.retrieval)]
    else:
        problems += _data(experiment.data, DATASETS)
        for model in experiment.model:
            problems += _click_model(model)
    for number, method in enumerate(experiment.methods):
        problems += _method(method, f"methods[{number}]")
    if not problems:
        names = Counter(run.name for run in experiment.runs())
        problems += [f"two runs are called {name!r}: tell them apart by label" for name, n in names.items() if n > 1]
        problems += [
            f"a run is called {name[:40]!r}...: {len(name.encode())} bytes are too long for a file name; give the "
            "method a label"
            for name in names
            if len(name.encode()) > _LONGEST_NAME
        ]
    if problems:
        raise InputError("\n".join(f"{place}: {problem}" for problem in problems))
    return experiment


def _data(data: DataConfig, datasets: Mapping[str, Dataset]) -> Iterable[str]:
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


def _click_model(model: ModelConfig) -> Iterable[str]:
    given = {"self", "embeddings", "feature_names", "dims", "num_dense", "linear"}
    if plain(model.name) in map(plain, RETRIEVAL_MODELS):
        yield f"model.name: {model.name} is a retrieval model; add a section [retrieval]"
        return
    parameters = yield from _known_model(model, MODELS, given)
    if model.linear and parameters and "linear" not in parameters:
        yield f"model.linear: {model.name} takes no first-order weights; leave it out"


def _retrieval_model(model: ModelConfig, config: RetrievalConfig) -> Iterable[str]:
    yield from _known_model(model, RETRIEVAL_MODELS, {"self", "users", "items", "edges"})
    if config.loss == "directau" and plain(model.name) == "neumf":
        yield "retrieval.loss: directau compares vectors, and NeuMF has scores alone; take bpr or bce"
    if model.linear:
        yield "model.linear: retrieval models take no first-order weights; leave it out"


def _retrieval(experiment: ExperimentConfig, config: RetrievalConfig) -> Iterable[str]:
    for model in experiment.model:
        yield from _retrieval_model(model, config)
    if experiment.graph is not None:
        yield "graph: the pairs of a retrieval run say what users and items are; leave it out"
    if any(optimizer.embedding for optimizer in experiment.optimizer):
        yield "optimizer.embedding: tables of retrieval models are not fused; leave it out"
    if experiment.slices:
        yield "slices: a retrieval run has none; leave them out"


def _behavior(experiment: ExperimentConfig, config: BehaviorConfig) -> Iterable[str]:
    for section in ("retrieval", "graph"):
        if getattr(experiment, section) is not None:
            yield f"{section}: a run on behaviour sequences has none; leave out one of the sections"
    known_options: set[str] = set()
    for model in experiment.model:
        known_options |= set((yield from _known_model(model, {"BehaviorModel": BehaviorModel}, _GIVEN)))
        if model.linear:
            yield "model.linear: BehaviorModel takes no first-order weights; leave it out"
    if any(optimizer.embedding for optimizer in experiment.optimizer):
        yield "optimizer.embedding: tables of behaviour models are not fused; leave it out"
    for number, pooling in enumerate(config.poolings):
        key = f"behavior.poolings[{number}]"
        cls = POOLINGS.get(pooling.pooling)
        if cls is None:
            yield f"{key}.pooling: unknown pooling {pooling.pooling!r}{hint(pooling.pooling, POOLINGS)}"
            continue
        classes = [cls, Search, *ATTENTIONS.values()] if issubclass(cls, Search) else [cls]
        known = {name for each in classes for name in inspect.signature(each.__init__).parameters}
        known |= known_options
        yield from unknown(f"{key}.options", pooling.options, known - _GIVEN - {"dim", "embedding_dim"})
        for each in (BehaviorModel, *classes):
            yield from misfits(f"{key}.options", pooling.options, each)
    for name, part in experiment.slices.items():
        if part.feature != "history":
            yield f"slices.{name}.feature: behaviour runs have slices of 'history', not of {part.feature!r}"


_GIVEN = {"self", "items", "pooling", "categories", "num_dense", "options"}
"""What runs give a behaviour model themselves."""


def _known_model(
    model: ModelConfig, models: Mapping[str, type], given: set[str]
) -> Generator[str, None, Mapping[str, Any]]:
    """Says what is wrong with the name and the options, and answers the model's parameters."""
    cls = {plain(name): cls for name, cls in models.items()}.get(plain(model.name))
    if cls is None:
        yield f"model.name: unknown model {model.name!r}{hint(model.name, models)}"
        return {}
    parameters = inspect.signature(cls.__init__).parameters
    yield from unknown("model.options", model.options, set(parameters) - given)
    yield from misfits("model.options", model.options, cls)
    return parameters


def _after_training(experiment: ExperimentConfig) -> Iterable[str]:
    """Methods that are fitted to trained tables."""
    asked = [number for number, method in enumerate(experiment.methods) if method.after_training]
    if asked and (experiment.retrieval or experiment.behavior):
        yield f"methods[{asked[0]}].after_training: click-through runs alone have it; leave it out"
    if asked and any(optimizer.embedding for optimizer in experiment.optimizer):
        yield f"methods[{asked[0]}].after_training: full tables are not fused then; leave out optimizer.embedding"


def _monitor(experiment: ExperimentConfig) -> Iterable[str]:
    monitor = experiment.training.monitor
    if ("@" in monitor) != (experiment.retrieval is not None):
        kind, metric = ("retrieval", "recall@20") if experiment.retrieval else ("click-through", "auc")
        yield f"training.monitor: a {kind} run has no {monitor}; set it, for example, to 'valid/{metric}'"


def _model(model: ModelConfig) -> Iterable[str]:
    if model.init_uniform is not None and model.init_normal is not None:
        yield "model: give init_uniform or init_normal, not both"


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
    if config.after_training and config.method == "Full":
        yield f"{key}.after_training: full tables are what is trained; name a method that is fitted to them"
    if config.content and len(config.tables) != 1:
        yield f"{key}.content: say in {key}.table whose content vectors"
    needs = [
        name for name in fields if _required(fields[name]) and name not in config.options and name not in PROVIDERS
    ]
    if needs and not given:
        yield f"{key}: {config.method} needs {' and '.join(needs)}: give rows, nbytes or share"
    elif config.rows is not None and (missing := [name for name in needs if name != "rows"]):
        yield f"{key}.options: {config.method} with rows needs {' and '.join(missing)}"


def _inside(of: Any, key: str) -> Iterable[str]:
    """What is wrong with the method inside a wrapper, { method = "UnifiedEmbedding", balanced = true }."""
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
    yield from _inside(of.get("of"), f"{key}.of")


def _slices(experiment: ExperimentConfig) -> Iterable[str]:
    for name, part in experiment.slices.items():
        if part.max_count is not None and part.max_count < part.min_count:
            yield f"slices.{name}: max_count {part.max_count} is below min_count {part.min_count}"


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _explain(error: Any, values: Mapping[str, Any]) -> str:
    """One message of pydantic with the TOML key, and the nearest known key where it is unknown."""
    keys = [part for part in error["loc"] if isinstance(part, int) or not part.startswith("function-")]
    if len(keys) > 1 and isinstance(keys[1], int) and isinstance(values.get(keys[0]), dict):
        del keys[1]  # of a section that may also be a list of sections
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in keys).lstrip(".")
    if error["type"] == "unexpected_keyword_argument":
        return f"unknown key {key!r}{hint(str(keys[-1]), _known_keys(keys[:-1]))}"
    if error["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"missing key {key!r}"
    said = error["msg"][0].lower() + error["msg"][1:]
    listed = "; a list is swept for budgets, seeds and optimizer settings alone" * isinstance(error["input"], list)
    return f"{key}: {said}, not {error['input']!r}{listed}"


def _known_keys(keys: list[Any]) -> list[str]:
    """The keys of the table at this place of the file."""
    section = PoolingConfig if "poolings" in keys else _SECTIONS[keys[0]] if keys else ExperimentConfig
    return [field.name for field in dataclasses.fields(section)]
