"""A fitted tokenizer on disk: a folder that other processes, and later versions, read the same codes from.

    <folder>/tokenizer.json             format, version, settings, vocabulary, names and checksums of the rest
             tensors-<sum>.safetensors  codebooks, weights, supported pieces, the SentencePiece model

The JSON file is written last, in one step, so that a folder holds the old tokenizer or the new one. It carries a
checksum of itself and of the tensors: an artifact that was damaged or edited is refused.
"""

import ctypes
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from embcomp.extras import install
from embcomp.files import Damaged, write
from embcomp.manifest import read_sealed, write_sealed

if TYPE_CHECKING:
    from embcomp.semantic_ids.tokenizer import Tokenizer

FORMAT = 1
NAME = "tokenizer.json"


def version_of(tokenizer: "Tokenizer") -> str:
    """12 hexadecimal digits that stand for everything that codes depend on."""
    parts = [tokenizer.config(), tokenizer.width, {k: checksum(v) for k, v in sorted(tokenizer.tensors.items())}]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def save(tokenizer: "Tokenizer", folder: Path) -> None:
    """Writes a fitted tokenizer and its vocabulary.

    Raises:
        ValueError: it is not fitted, or the folder holds a tokenizer of another version.
    """
    version = tokenizer.version
    path = folder / NAME
    if path.exists() and (there := _read_json(path)["version"]) != version:
        raise ValueError(f"{folder} holds version {there}, which is frozen; save version {version} to another folder")
    tensors = dict(tokenizer.tensors)
    vocabulary = None
    if tokenizer.vocabulary is not None:
        vocabulary, held = tokenizer.vocabulary.state()
        tensors |= {f"vocabulary.{name}": tensor for name, tensor in held.items()}
    data = _safetensors().save({name: tensor.contiguous() for name, tensor in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    file = folder / f"tensors-{digest[:12]}.safetensors"
    write(file, data)
    values: dict[str, Any] = {
        "format": FORMAT,
        "version": version,
        "config": tokenizer.config(),
        "width": tokenizer.width,
        "baseline": tokenizer.baseline,
        "vocabulary": vocabulary,
        "tensors": file.name,
        "sha256": digest,
    }
    write_sealed(path, values)
    for other in folder.glob("tensors-*.safetensors"):
        if other != file:
            other.unlink()


def load(folder: str | Path) -> "Tokenizer":
    """Reads what `Tokenizer.save` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file was damaged or edited, or comes from a later version of the format; the text names it.

    Example:
        >>> import torch
        >>> from embcomp import semantic_ids
        >>> content = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
        >>> semantic_ids.ResidualKMeans(levels=2, codebook_size=16).fit(content).save("films")
        >>> semantic_ids.load("films").encode(content).shape
        torch.Size([300, 2])
    """
    from embcomp.semantic_ids.tokenizer import TOKENIZERS
    from embcomp.semantic_ids.vocabulary import Vocabulary

    path = Path(folder) / NAME
    values = _read_json(path)
    file = path.parent / values["tensors"]
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: {path} names it")
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != values["sha256"]:
        raise Damaged(f"{file} is damaged or was edited: its checksum is not that of {path}")
    config = dict(values["config"])
    name = config.pop("tokenizer")
    if name not in TOKENIZERS:
        raise ValueError(f"{path} holds a {name!r}, which this version does not know; it knows {sorted(TOKENIZERS)}")
    tokenizer = TOKENIZERS[name](config.pop("levels"), config.pop("codebook_size"), **config)
    tensors: dict[str, Tensor] = _safetensors().load(data)
    kept = {key.partition(".")[2]: tensors.pop(key) for key in list(tensors) if key.startswith("vocabulary.")}
    tokenizer.tensors, tokenizer.width, tokenizer.baseline = tensors, values["width"], values["baseline"]
    tokenizer._version = values["version"]  # as it was fitted: a later release may know more settings
    if values["vocabulary"] is not None:
        tokenizer.vocabulary = Vocabulary.from_state(values["vocabulary"], kept)
    return tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {path.parent} holds no tokenizer")
    values = read_sealed(path)
    if values["format"] > FORMAT:
        raise ValueError(f"{path} has format {values['format']}, this version reads up to {FORMAT}: upgrade embcomp")
    return values


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: {install('semantic')}") from None
    return safetensors.torch


def checksum(tensor: Tensor) -> str:
    """Of dtype, shape and values."""
    tensor = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(ctypes.string_at(tensor.data_ptr(), tensor.nbytes)).hexdigest()
    return f"{tensor.dtype} {list(tensor.shape)} {digest}"


def bytes_as_tensor(data: bytes) -> Tensor:
    """Bytes as a uint8 tensor, for a safetensors file."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
