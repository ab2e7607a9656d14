"""The parts that a user saves beside the model: objects by their state, tokenizers and maps by their files."""

import contextlib
import copy
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embcomp import artifact, nested
from embcomp.files import replacing, write
from embcomp.manifest import files_below

_KIND = "part of a checkpoint"
_NAME = re.compile(r"[A-Za-z0-9_-]+")


def check_parts(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Check the parts, and return them with paths as `Path`.

    Raises:
        TypeError: a part cannot be saved.
        ValueError: a name is not a plain word.
    """
    checked: dict[str, Any] = {}
    for name, part in parts.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"part {name!r}: a name has letters, digits, '_' and '-'")
        if isinstance(part, str | os.PathLike):
            checked[name] = Path(part).absolute()
        elif isinstance(part, bytes) or (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
            checked[name] = part
        else:
            raise TypeError(
                f"part {name!r} is a {type(part).__name__}: give an object with state_dict and load_state_dict, bytes, "
                "or the path of a file or folder"
            )
    return checked


def taken(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Take a snapshot of the parts: states are copied, bytes and paths do not change.

    Raises:
        TypeError: a state holds something that is not a value; the text names the part and the place.
    """
    return {name: part if isinstance(part, bytes | Path) else _State(part, name) for name, part in parts.items()}


def write_parts(folder: Path, found: Mapping[str, Any]) -> None:
    """Write the snapshot that `taken` returned."""
    for name, part in found.items():
        if isinstance(part, _State):
            artifact.save(folder / f"{name}.safetensors", _KIND, {"value": part.structure}, part.tensors)
        elif isinstance(part, bytes):
            write(folder / f"{name}.bytes", part)
        elif part.is_dir():
            for file in files_below(part):
                write(folder / f"{name}.files" / file, (part / file).read_bytes())
        else:
            write(folder / f"{name}.file", part.read_bytes())


def check_saved(folder: Path, parts: Mapping[str, Any]) -> None:
    """Raise ValueError if a part was not saved, or if bytes or files differ from those saved."""
    for name, part in parts.items():
        saved = _saved(folder, name, part)
        if isinstance(part, bytes) and part != saved.read_bytes():
            raise ValueError(f"part {name!r} is not what {saved} holds: the training continued with another one")
        if isinstance(part, Path) and part.exists():
            for file in sorted({*files_below(part), *files_below(saved)}) if part.is_dir() else [""]:
                one, other = part / file, saved / file
                if not (one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()):
                    raise ValueError(f"part {name!r}: {one} is not what {other} holds: the training used another one")


def saved_states(folder: Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Read the states of the parts that have one; nothing is changed. Raise Damaged for a file of something else."""
    states = {name: part for name, part in parts.items() if not isinstance(part, bytes | Path)}
    return {name: nested.load(_saved(folder, name, part), _KIND) for name, part in states.items()}


def states_now(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the current states, to restore them after an error."""
    states = {name: part for name, part in parts.items() if not isinstance(part, bytes | Path)}
    return {name: copy.deepcopy(part.state_dict()) for name, part in states.items()}


def load_states(parts: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Load the state of each part. Raise ValueError, naming the part, if it refuses."""
    for name, state in states.items():
        try:
            parts[name].load_state_dict(state)
        except Exception as error:
            raise ValueError(f"part {name!r} does not take the state that was saved: {error}") from error


def go_back(parts: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Restore the states of `states_now`."""
    for name, state in states.items():
        with contextlib.suppress(Exception):  # the error that led here is the one to hear of
            parts[name].load_state_dict(state)


def restore_files(folder: Path, parts: Mapping[str, Any]) -> None:
    """Restore files and folders that are missing."""
    for name, part in parts.items():
        if isinstance(part, Path) and not part.exists():
            saved = _saved(folder, name, part)
            with replacing(part) as new:
                shutil.copytree(saved, new) if saved.is_dir() else shutil.copyfile(saved, new)


class _State:
    """A snapshot of a state."""

    def __init__(self, part: Any, name: str) -> None:
        self.structure, tensors = nested.flatten(part.state_dict(), f"the state of part {name!r}")
        self.tensors = {key: tensor.detach().to("cpu", copy=True) for key, tensor in tensors.items()}


def _saved(folder: Path, name: str, part: Any) -> Path:
    kinds = (".safetensors", ".pt")  # the latter of embcomp 0.1
    if isinstance(part, bytes | Path):
        kinds = (".bytes",) if isinstance(part, bytes) else (".file", ".files")
    for kind in kinds:
        if (folder / f"{name}{kind}").exists():
            return folder / f"{name}{kind}"
    held = sorted(path.stem for path in folder.iterdir()) if folder.is_dir() else []
    raise ValueError(f"{folder.parent} holds no part {name!r} of this kind; it holds {held}")
