"""The reader of TOML files as checked experiments. All checks that need no data are done before the first run."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from data.values import no_settings
from experiments.config import ExperimentConfig
from experiments.config.options import hint
from experiments.config.problems import common_problems
from experiments.errors import InputError
from experiments.tasks.task import KINDS

CONFIGS = Path(__file__).parent / "configs"
_LONGEST_NAME = 230  # of 255 bytes, which leaves room for ".json.<process>.part"
_NOT_IN_FILES = ("kind", "section")  # they follow from the sections


def find(paths: Iterable[Path]) -> list[Path]:
    """Return the TOML files in `paths` and in the folders among them. A bare name is one of `experiments/configs`."""
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
        InputError: the file is not TOML (the message has the line), keys are unknown or missing, values have the wrong
            type, or names are unknown.
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
    """Make an experiment of values as TOML gives them; messages begin with `place`.

    Raises:
        InputError: see `load`.
    """
    if problems := list(no_settings(values)):
        raise _error(place, problems)
    kinds = {kind.section.key: kind for kind in KINDS.values()}
    given = [key for key in kinds if values.get(key) is not None]
    kind = kinds[given[-1]] if given else KINDS["clicks"]
    common = {key: value for key, value in values.items() if key not in kinds}
    problems = [f"unknown key {key!r}" for key in _NOT_IN_FILES if key in common]
    experiment = _read(ExperimentConfig, {"experiment": default_name, **common}, [], problems)
    section = _read(kind.section, values[given[-1]], given[-1:], problems) if given else None
    if problems:
        raise _error(place, problems)
    if section is not None:
        experiment = dataclasses.replace(experiment, kind=kind.name, section=section)
    problems += [f"{key}: a {kind.name} run has none; leave out one of the sections" for key in given[:-1]]
    problems += [*kind.problems(experiment), *common_problems(experiment)]
    problems = problems or list(_names(experiment))
    if problems:
        raise _error(place, problems)
    return experiment


def _error(place: str, problems: Iterable[str]) -> InputError:
    return InputError("\n".join(f"{place}: {problem}" for problem in problems))


def _names(experiment: ExperimentConfig) -> Iterator[str]:
    names = Counter(run.name for run in experiment.runs())
    yield from (f"two runs are called {name!r}: tell them apart by label" for name, n in names.items() if n > 1)
    for name in names:
        if len(name.encode()) > _LONGEST_NAME:
            yield (
                f"a run is called {name[:40]!r}...: {len(name.encode())} bytes are too long for a file name; give the "
                "method a label"
            )


def _read(cls: type, values: Any, at: list[str], problems: list[str]) -> Any:
    """Make a section of its values, which are `at` these keys of the file; add errors to `problems`."""
    try:
        # As JSON, because strict validation takes tables and arrays for dataclasses and tuples only there.
        return TypeAdapter(cls).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        problems += [_explain(each, cls, values, at) for each in error.errors()]
        return None


def _explain(error: Any, cls: type, values: Any, at: list[str]) -> str:
    """Return a message of pydantic with the TOML key, and the nearest known key if it is unknown."""
    keys = [key for key in error["loc"] if isinstance(key, int) or not key.startswith("function-")]
    if len(keys) > 1 and isinstance(keys[1], int) and isinstance(values.get(keys[0]), dict):
        del keys[1]  # of a section that may also be a list of sections
    key = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in [*at, *keys]).lstrip(".")
    if error["type"] == "unexpected_keyword_argument":
        known = {*_known_keys(cls, keys[:-1]), *(() if at or len(keys) > 1 else _section_keys())}
        return f"unknown key {key!r}{hint(str(keys[-1]), known - {*_NOT_IN_FILES})}"
    if error["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"missing key {key!r}"
    said = error["msg"][0].lower() + error["msg"][1:]
    listed = "; a list is swept for budgets, seeds and optimizer settings alone" * isinstance(error["input"], list)
    return f"{key}: {said}, not {error['input']!r}{listed}"


def _section_keys() -> Iterator[str]:
    return (kind.section.key for kind in KINDS.values())


def _known_keys(cls: type, keys: Iterable[Any]) -> Iterator[str]:
    """Return the keys of the table at this place of a section."""
    for key in keys:
        cls = next(_tables_in(get_type_hints(cls).get(key)), cls)
    return (field.name for field in dataclasses.fields(cls))


def _tables_in(hint: Any) -> Iterator[type]:
    """Yield the dataclasses in a type hint."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for inner in get_args(hint):
        yield from _tables_in(inner)
