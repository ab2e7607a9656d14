"""A folder of checkpoints on disk: each appears whole or not at all, and damage is found by checksums.

<folder>/step-0000000120/    one checkpoint
             manifest.json   step, position, what the model was, length and SHA-256 of every file .metadata       of
             torch.distributed.checkpoint, as the *.distcp __0_0.distcp    tensors that rank 0 wrote rank-0.safetensors
             random state of rank 0 parts/          what the user gave beside the model
         .step-...part       being written, or left by a process that was killed: never read, removed by the next save
"""

import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

from embcomp import nested
from embcomp.files import sync
from embcomp.manifest import read_sealed, write_sealed

MANIFEST = "manifest.json"
FORMAT = 2  # 1, of embcomp 0.1: the position is bare JSON
_NAME = re.compile(r"step-(\d{10,})(\.replaced)?")


class Folder:
    """The folder `path` with its checkpoints."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()

    def names(self) -> list[str]:
        """Return the existing checkpoints, the newest first; one that is being replaced follows its replacement."""
        if not self.path.is_dir():
            return []
        matches = [match for entry in self.path.iterdir() if (match := _NAME.fullmatch(entry.name))]
        return [match[0] for match in sorted(matches, key=lambda match: (-int(match[1]), match[2] or ""))]

    def begin(self, step: int) -> Path:
        """Make an empty folder to write a checkpoint into, and remove the remains of killed saves."""
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.path.glob(".step-*.part"):
            shutil.rmtree(left, ignore_errors=True)
        part = self.path / f".{name_of(step)}.{uuid.uuid4().hex[:8]}.part"
        part.mkdir()
        return part

    def publish(self, part: Path, step: int) -> None:
        """Make a complete checkpoint visible in one step. One of the same step stays until the new one is in place."""
        path = self.path / name_of(step)
        old = path.with_name(f"{path.name}.replaced")
        if path.exists():
            self.remove(old.name)
            os.rename(path, old)
        os.rename(part, path)
        sync(self.path)
        self.remove(old.name)

    def remove(self, name: str) -> None:
        path = self.path / name
        if path.exists():
            part = self.path / f".{name}.{uuid.uuid4().hex[:8]}.part"
            os.rename(path, part)  # so that a removal that is stopped leaves nothing that looks like a checkpoint
            shutil.rmtree(part, ignore_errors=True)


def name_of(step: int) -> str:
    """Return the folder name of a step."""
    return f"step-{step:010d}"


def step_of(name: str) -> int:
    """Return the step of a folder name."""
    return int(name.partition("-")[2].partition(".")[0])


def write_manifest(path: Path, values: dict[str, Any]) -> None:
    """Write the last file of a checkpoint, and sync its folders; all other files are then on the disk."""
    values = {"format": FORMAT, **values}
    values["position"], _ = nested.flatten(values["position"], "position")
    write_sealed(path / MANIFEST, values)
    for folder in {path, *(file.parent for file in path.rglob("*"))}:
        sync(folder)


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest that `write_manifest` wrote.

    Raises:
        Damaged: the file is missing, cut short or edited.
        ValueError: the file is of a later version of embcomp.
    """
    file = path / MANIFEST
    values = read_sealed(file)
    if values["format"] > FORMAT:
        raise ValueError(f"{file} has format {values['format']}, this version reads up to {FORMAT}: upgrade embcomp")
    if values["format"] > 1:
        values["position"] = nested.unflatten(values["position"], {})
    return values
