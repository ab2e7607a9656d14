"""The data sets by name, and the functions that load them."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from polars.exceptions import PolarsError

from data.clicks import ClickData
from data.fingerprint import fingerprints
from data.interactions import Interactions, from_rows
from data.prepare import prepared
from data.readers import (
    avazu,
    criteo,
    frappe,
    globo,
    interactions,
    kdd12,
    ml_1m,
    parquet,
    planted,
    sequences,
    synthetic,
)
from data.schema import DataError, known
from data.sequences import Sequences
from data.text import check_utf8
from embcomp.columns import ColumnsError, MissingColumn, is_damaged


@dataclass(frozen=True)
class Dataset:
    """The reader of a data set.

    Attributes:
        read: a function (folder, **options) that returns a Source, or rows of interactions; without the folder for
            generated data.
        files: a function from the folder to its source files; None for generated data.
        folder: the name of its folder under the root.
        resolve: a function from the given options to those that `read` takes.
        defaults: the options of `read` with their defaults, if its signature does not name them.
    """

    read: Callable[..., Any]
    files: Callable[[Path], list[Path]] | None = None
    folder: str | None = None
    resolve: Callable[[dict[str, Any]], dict[str, Any]] = dict
    defaults: dict[str, Any] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The options with their defaults."""
        if self.defaults is not None:
            return self.defaults
        parameters = list(inspect.signature(self.read).parameters.values())
        return {p.name: p.default for p in parameters[1 if self.files else 0 :]}


DATASETS: dict[str, Dataset] = {
    "ml-1m": Dataset(ml_1m.read, ml_1m.files, "ml-1m"),
    "criteo": Dataset(criteo.read, criteo.files, "criteo"),
    "avazu": Dataset(avazu.read, avazu.files, "avazu"),
    "kdd12": Dataset(kdd12.read, kdd12.files, "kdd12"),
    "frappe": Dataset(frappe.read, frappe.files, "frappe_x1"),
    "globo": Dataset(globo.read, globo.files, "globo"),
    "parquet": Dataset(parquet.read, parquet.files, resolve=parquet.resolve),
    "synthetic": Dataset(synthetic.read, defaults=synthetic.OPTIONS),
    "planted": Dataset(planted.read, defaults=planted.OPTIONS),
    "heavy-tail": Dataset(planted.read_heavy_tail, defaults=planted.HEAVY_TAIL),
}

INTERACTIONS: dict[str, Dataset] = {
    "gowalla": Dataset(interactions.read, interactions.files, "gowalla"),
    "beauty": Dataset(interactions.read, interactions.files, "beauty"),
    "interactions": Dataset(interactions.read, interactions.files),
    "synthetic": Dataset(interactions.synthetic, defaults=asdict(synthetic.Config())),
}

SEQUENCES: dict[str, Dataset] = {
    "ml-1m": Dataset(sequences.read, sequences.files, "ml-1m"),
    "globo": Dataset(sequences.read_globo, globo.files, "globo"),
    "synthetic": Dataset(sequences.synthetic, defaults=asdict(synthetic.Config())),
}


def load(
    name: str,
    *,
    root: str | Path | None = None,
    folder: str | Path | None = None,
    cache: str | Path | None = None,
    **options: Any,
) -> ClickData:
    """Encode a data set, if that has not been done yet, and open it.

    Args:
        name: a key of `DATASETS`.
        root: the folder of source data, by default that of EMBCOMP_DATA.
        folder: the folder of this data set, relative to `root` unless absolute, if it is not the usual one.
        cache: the folder of encoded data, by default `embcomp` in the user's cache folder.
        options: the options of the `read` function of the data set's module.

    Raises:
        DataError: a name or an option is unknown, a file is missing or damaged, a line is malformed, a value cannot be
            trained on, or a split is empty.
    """
    dataset = DATASETS[known("data set", name, DATASETS)]
    chosen = _chosen(name, dataset, options)
    if dataset.files is None:
        return ClickData(prepared(name, cache, chosen, [], lambda: dataset.read(**chosen)))
    directory = _place(root, folder or dataset.folder)
    with _named(name, directory, files := []):
        files += dataset.files(directory)
        return ClickData(prepared(name, cache, chosen, files, lambda: dataset.read(directory, **chosen)))


def load_interactions(
    name: str, *, root: str | Path | None = None, folder: str | Path | None = None, **options: Any
) -> Interactions:
    """Read a retrieval data set into memory.

    Args:
        name: a key of `INTERACTIONS`; "interactions" reads any parquet file with columns user_id, item_id and split.
        root: the folder of source data, by default that of EMBCOMP_DATA.
        folder: the folder or file of this data set, relative to `root` unless absolute, if it is not the usual one.
        options: the options; for "synthetic", those of `data.readers.synthetic.Config`.

    Raises:
        DataError: a name or an option is unknown, a file is missing or damaged, a value cannot be trained on, or a
            split is empty.
    """
    dataset = INTERACTIONS[known("data set", name, INTERACTIONS)]
    chosen = _chosen(name, dataset, options)
    if dataset.files is None:
        return from_rows(name, dataset.read(**chosen))
    directory = _place(root, folder or dataset.folder)
    with _named(name, directory, files := []):
        files += _there(name, dataset.files(directory))
        return from_rows(name, dataset.read(directory, **chosen))


def load_sequences(
    name: str, *, root: str | Path | None = None, folder: str | Path | None = None, **options: Any
) -> Sequences:
    """Read behavior sequences into memory; `data.sequences` and `data.requests` make examples of them.

    Args:
        name: a key of `SEQUENCES`.
        root: the folder of source data, by default that of EMBCOMP_DATA.
        folder: the folder of this data set, relative to `root` unless absolute, if it is not the usual one.
        options: the options; for "synthetic", those of `data.readers.synthetic.Config`.

    Raises:
        DataError: a name or an option is unknown, or a file is missing or damaged.
    """
    dataset = SEQUENCES[known("data set", name, SEQUENCES)]
    chosen = _chosen(name, dataset, options)
    if dataset.files is None:
        return dataset.read(**chosen)
    directory = _place(root, folder or dataset.folder)
    with _named(name, directory, files := []):
        files += _there(name, dataset.files(directory))
        return dataset.read(directory, **chosen)


def content_of(
    datasets: Mapping[str, Dataset], name: str, *, folder: str | Path | None = None
) -> list[tuple[str, str]] | None:
    """Return the names and checksums of the source files: empty for generated data, None if a file is missing.

    Args:
        datasets: the registry, DATASETS, INTERACTIONS or SEQUENCES.
        name: a key of it.
        folder: the folder, if it is not the usual one.

    Raises:
        DataError: the name is unknown, or the folder is not valid.
    """
    dataset = datasets[known("data set", name, datasets)]
    if dataset.files is None:
        return []
    if not (folder or dataset.folder) or not (os.environ.get("EMBCOMP_DATA") or Path(folder or "").is_absolute()):
        return None
    directory = _place(None, folder or dataset.folder)
    try:
        return fingerprints(dataset.files(directory))
    except FileNotFoundError:
        return None
    except (ColumnsError, OSError) as error:
        raise DataError(f"{name}: {error}") from error


def has_files(name: str) -> bool:
    """Return whether any source file of a data set of clicks is in the folder of EMBCOMP_DATA."""
    dataset = DATASETS[known("data set", name, DATASETS)]
    if dataset.files is None or dataset.folder is None or not os.environ.get("EMBCOMP_DATA"):
        return False
    return any(file.exists() for file in dataset.files(_place(None, dataset.folder)))


def root_folder(root: str | Path | None = None) -> Path:
    """Return the folder of source data: `root`, else that of EMBCOMP_DATA."""
    chosen = root or os.environ.get("EMBCOMP_DATA")
    if not chosen:
        raise DataError("where is the data? Give root= or set EMBCOMP_DATA to the folder that holds the data sets")
    return Path(chosen).expanduser()


def _chosen(name: str, dataset: Dataset, options: dict[str, Any]) -> dict[str, Any]:
    """Return all options of a data set; given ones are checked."""
    defaults = dataset.options
    for option, value in options.items():
        default = defaults[known(f"option of {name}", option, defaults)]
        if not is_like(value, default):
            raise DataError(f"option {option!r} of {name} must be like its default {default!r}, not {value!r}")
    for option, default in defaults.items():
        if default is inspect.Parameter.empty and option not in options:
            raise DataError(f"data set {name!r} needs the option {option!r}")
    return dataset.resolve({**defaults, **options})


def is_like(value: Any, default: Any) -> bool:
    """Return whether the value of an option has the type of its default, if it has one; numbers must be finite."""
    if default is inspect.Parameter.empty:
        return True
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return type(value) in {float: (int, float)}.get(type(default), (type(default),))


def _place(root: str | Path | None, folder: str | Path | None) -> Path:
    if folder is None:
        raise DataError("which folder? Give folder=, the folder or file of the data")
    path = Path(folder).expanduser()
    return (path if path.is_absolute() else root_folder(root) / path).absolute()


def _there(name: str, files: list[Path]) -> list[Path]:
    for file in files:
        if not file.is_file():
            raise DataError(f"no file {file}; `python -m data fetch {name}` gets it or says where it is")
    return files


@contextmanager
def _named(name: str, place: Path, files: Sequence[Path]) -> Iterator[None]:
    """Add the name of the data set and its file to errors in the data; the folder, if there are several files."""
    try:
        yield
    except MissingColumn as error:
        where = files[0] if len(files) == 1 else place
        raise DataError(f"{name} in {where}: {error}") from error
    except (ColumnsError, OSError) as error:  # names the file
        raise DataError(f"{name}: {error}") from error
    except PolarsError as error:
        raise DataError(f"{name}: {_unreadable(place, files)}: {str(error).splitlines()[0]}") from error
    except DataError as error:
        if str(place) in str(error):  # a reader of text names the line, too
            raise
        where = files[0] if len(files) == 1 else place
        raise DataError(f"{name} in {where}: {error}") from error


def _unreadable(place: Path, files: Sequence[Path]) -> str:
    """Return the file that polars cannot read. Raise DataError if more is known."""
    for file in files:
        if file.suffix != ".parquet":
            check_utf8(file)
        elif is_damaged(file):
            return f"{file} cannot be read; write it again, or leave it out"
    return f"{files[0] if len(files) == 1 else f'the files in {place}'} cannot be read"
