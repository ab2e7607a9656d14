"""The files of a fitted tokenizer: a folder with one artifact (`embcomp.artifact`), which later versions can read.

    <folder>/tokenizer.safetensors  settings and version; codebooks, weights, supported pieces, the SentencePiece model

embcomp 0.1 wrote `tokenizer.json` and the file of tensors that it names, each with a checksum; both are read, and
replaced when the tokenizer is saved again.
"""

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor

from embcomp import artifact
from embcomp.extras import install
from embcomp.files import Damaged
from embcomp.manifest import read_sealed

KIND = "tokenizer"
NAME, OLD_NAME = "tokenizer.safetensors", "tokenizer.json"
_OLD_FORMAT = 1


def is_saved(folder: Path) -> bool:
    """Return whether a folder holds a tokenizer."""
    return (folder / NAME).is_file() or (folder / OLD_NAME).is_file()


def write(folder: Path, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a tokenizer as JSON values, among them "version", and tensors.

    Raises:
        ValueError: the folder holds a tokenizer of another version.
    """
    version = values["version"]
    if is_saved(folder) and (there := read(folder)[0]["version"]) != version:
        raise ValueError(f"{folder} holds version {there}, which is frozen; save version {version} to another folder")
    artifact.save(folder / NAME, KIND, values, tensors)
    (folder / OLD_NAME).unlink(missing_ok=True)
    for file in folder.glob("tensors-*.safetensors"):
        file.unlink()


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a tokenizer that `write`, or embcomp 0.1, wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file was damaged or edited, or has a later version of the format; the text names it.
    """
    if (folder / NAME).is_file():
        return artifact.load(folder / NAME, KIND)
    path = folder / OLD_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder / NAME} does not exist: {folder} holds no tokenizer")
    values = read_sealed(path)
    if values["format"] > _OLD_FORMAT:
        raise ValueError(f"{path} has format {values['format']}, this version reads up to {_OLD_FORMAT}")
    file = folder / values["tensors"]
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: {path} names it")
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != values["sha256"]:
        raise Damaged(f"{file} is damaged or was edited: its checksum is not that of {path}")
    return values, _safetensors().load(data)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: {install('semantic')}") from None
    return safetensors.torch
