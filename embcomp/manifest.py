"""The manifest of a folder: a JSON file with the length and checksum of each file, and a checksum of itself."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from embcomp.files import Damaged, write


def files_below(path: Path) -> list[str]:
    """List the files in a folder and its subfolders, as sorted paths relative to it."""
    return sorted(entry.relative_to(path).as_posix() for entry in path.rglob("*") if entry.is_file())


def checksums(path: Path, names: Iterable[str]) -> dict[str, list[Any]]:
    """The length and the SHA-256 of each file, by name."""
    return {name: [(path / name).stat().st_size, file_checksum(path / name)] for name in names}


def file_checksum(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, files: Mapping[str, list[Any]]) -> None:
    """Raise Damaged, naming the file, if a file differs from what was written."""
    for name, (length, checksum) in files.items():
        file = path / name
        try:
            here = file.stat().st_size
            if here != length:
                raise Damaged(f"{file} is damaged: it has {here} bytes of {length}")
            if file_checksum(file) != checksum:
                raise Damaged(f"{file} is damaged: its checksum does not fit")
        except FileNotFoundError:
            raise Damaged(f"{file} is missing") from None
        except OSError as error:
            raise Damaged(f"{file} cannot be read ({error})") from None


def write_sealed(file: Path, values: Mapping[str, Any]) -> None:
    """Write JSON values together with their checksum."""
    write(file, (json.dumps({**values, "checksum": _checksum(values)}, indent=1) + "\n").encode())


def read_sealed(file: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote.

    Raises:
        Damaged: the file is missing, cut short or edited.
    """
    try:
        values = json.loads(file.read_bytes())
        checksum = values.pop("checksum")
    except FileNotFoundError:
        raise Damaged(f"{file} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{file} is damaged ({error})") from None
    if checksum != _checksum(values):
        raise Damaged(f"{file} is damaged or was edited: its checksum does not fit")
    return values


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
