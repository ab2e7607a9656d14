"""What a user saves beside the model: schedulers and the like by their state, tokenizers and maps by their files."""

import io
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from embcomp.checkpoints.folder import files_below, write_file

_NAME = re.compile(r"[A-Za-z0-9_-]+")


def check_parts(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts, paths as `Path`.

    Raises:
        TypeError: something that cannot be saved.
        ValueError: a name that is no plain word.
    """
    found: dict[str, Any] = {}
    for name, part in parts.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"part {name!r}: a name has letters, digits, '_' and '-'")
        if isinstance(part, str | os.PathLike):
            found[name] = Path(part).absolute()
        elif isinstance(part, bytes) or (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
            found[name] = part
        else:
            raise TypeError(
                f"part {name!r} is a {type(part).__name__}: give an object with state_dict and load_state_dict, bytes, "
                "or the path of a file or folder"
            )
    return found


def taken(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts as they are now: a state is taken, bytes and paths do not change."""
    return {name: part if isinstance(part, bytes | Path) else _State(part.state_dict()) for name, part in parts.items()}


def write_parts(folder: Path, found: Mapping[str, Any]) -> None:
    """Writes what `taken` took."""
    for name, part in found.items():
        if isinstance(part, _State):
            write_file(folder / f"{name}.pt", torch_bytes(part.value))
        elif isinstance(part, bytes):
            write_file(folder / f"{name}.bytes", part)
        elif part.is_dir():
            for file in files_below(part):
                write_file(folder / f"{name}.files" / file, (part / file).read_bytes())
        else:
            write_file(folder / f"{name}.file", part.read_bytes())


def check_saved(folder: Path, parts: Mapping[str, Any]) -> None:
    """Raises ValueError where a part was not saved, or bytes or files are others than those saved."""
    for name, part in parts.items():
        saved = _saved(folder, name, part)
        if isinstance(part, bytes) and part != saved.read_bytes():
            raise ValueError(f"part {name!r} is not what {saved} holds: the training went on with another one")
        if isinstance(part, Path) and part.exists():
            for file in sorted({*files_below(part), *files_below(saved)}) if part.is_dir() else [""]:
                one, other = part / file, saved / file
                if not (one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()):
                    raise ValueError(f"part {name!r}: {one} is not what {other} holds: the training had another one")


def restore(folder: Path, parts: Mapping[str, Any], write: bool) -> None:
    """Loads states; with `write` puts files back that are gone."""
    for name, part in parts.items():
        saved = _saved(folder, name, part)
        if isinstance(part, Path):
            if write and not part.exists():
                copy = part.with_name(f".{part.name}.{os.getpid()}.part")
                part.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(saved, copy) if saved.is_dir() else shutil.copyfile(saved, copy)
                os.replace(copy, part)
        elif not isinstance(part, bytes):
            part.load_state_dict(torch.load(saved, map_location="cpu", weights_only=True))


def torch_bytes(value: Any) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class _State:
    def __init__(self, value: Any) -> None:
        self.value = value


def _saved(folder: Path, name: str, part: Any) -> Path:
    kinds = (".bytes",) if isinstance(part, bytes) else (".file", ".files") if isinstance(part, Path) else (".pt",)
    for kind in kinds:
        if (folder / f"{name}{kind}").exists():
            return folder / f"{name}{kind}"
    held = sorted(path.stem for path in folder.iterdir()) if folder.is_dir() else []
    raise ValueError(f"{folder.parent} holds no part {name!r} of this kind; it holds {held}")
