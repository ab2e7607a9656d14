"""The one format of files that embcomp saves: safetensors, with a header and a checksum of the whole file inside.

    8 bytes  length of the header
    header   {"__metadata__": {"sha256": ..., "embcomp": kind, "version": "1", "header": JSON}, where each tensor is}
    tensors  one after the other, little-endian

Any reader of safetensors opens such a file. The checksum is over every byte, its own 64 digits read as zeros. Needs
torch alone.
"""

import ctypes
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from embcomp.files import Damaged, StrPath, write

VERSION = 1
_START = b'{"__metadata__":{"sha256":"'
_ZEROS = b"0" * 64
_DTYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.uint16: "U16", torch.int16: "I16",
    torch.uint32: "U32", torch.int32: "I32", torch.uint64: "U64", torch.int64: "I64", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_BY_NAME = {name: dtype for dtype, name in _DTYPES.items()}


def save(path: StrPath, kind: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write an artifact. An existing file is replaced in one step or not at all.

    Args:
        path: the file.
        kind: the kind of content, which `load` checks.
        header: JSON values.
        tensors: the tensors by name, of any shape, on any device.

    Raises:
        ValueError: a tensor has a dtype or layout that safetensors does not have.
        OSError: the file cannot be written; the text names it.

    Example:
        >>> import torch
        >>> from embcomp import artifact
        >>> artifact.save("codes.safetensors", "codes", {"levels": 2}, {"codes": torch.tensor([[3, 1]])})
        >>> artifact.load("codes.safetensors", "codes")
        ({'levels': 2}, {'codes': tensor([[3, 1]])})
    """
    held = {name: _plain(name, tensor) for name, tensor in tensors.items()}
    held = dict(sorted(held.items(), key=lambda item: -item[1].element_size()))  # so that each starts at a multiple
    metadata = {"sha256": _ZEROS.decode(), "embcomp": kind, "version": str(VERSION), "header": json.dumps(header)}
    table: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in held.items():
        start, end = end, end + tensor.nbytes
        table[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256(len(text).to_bytes(8, "little") + text)
    for tensor in held.values():
        digest.update(memory(tensor))
    text = _START + digest.hexdigest().encode() + text[len(_START) + len(_ZEROS) :]
    write(path, (len(text).to_bytes(8, "little"), text, *map(memory, held.values())))


def load(path: StrPath, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the header and the tensors of a file that `save` wrote.

    Raises:
        Damaged: the file is cut short, was changed, or is not an artifact (also a ValueError).
        ValueError: the file is of another kind or of a later version.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            table, metadata, tensors, intact = _read(file)
        except (ValueError, KeyError, TypeError, RuntimeError, AttributeError, RecursionError) as error:
            raise Damaged(f"{path} is damaged, or not a file of embcomp ({error})") from None
    if not intact:
        raise Damaged(f"{path} is damaged or was edited: its checksum does not fit")
    if metadata["embcomp"] != kind:
        raise ValueError(f"{path} holds a {metadata['embcomp']}, not a {kind}")
    if int(metadata["version"]) > VERSION:
        raise ValueError(
            f"{path} is of version {metadata['version']}, this embcomp reads up to {VERSION}: upgrade embcomp"
        )
    return json.loads(metadata["header"]), {name: tensors[name] for name in table}


def checksum(tensor: Tensor) -> str:
    """The dtype, the shape and the SHA-256 of the values of a tensor, as one text."""
    held = tensor.detach().cpu().contiguous()
    return f"{held.dtype} {list(held.shape)} {hashlib.sha256(memory(held)).hexdigest()}"


def bytes_as_tensor(data: bytes) -> Tensor:
    """Copy bytes into a uint8 tensor, which a file can hold."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def is_artifact(path: StrPath) -> bool:
    """Return whether a file begins as `save` writes it; other safetensors files do not."""
    with open(path, "rb") as file:
        return file.read(8 + len(_START))[8:] == _START


def _read(file: IO[bytes]) -> tuple[dict[str, Any], dict[str, str], dict[str, Tensor], bool]:
    """Read the table, the metadata and the tensors, and tell whether the checksum fits; if not, use none of them."""
    size = os.fstat(file.fileno()).st_size
    length = file.read(8)
    if size < 8 or int.from_bytes(length, "little") > size - 8:
        raise ValueError(f"it is cut short, to {size} bytes")
    text = file.read(int.from_bytes(length, "little"))
    if not text.startswith(_START):
        raise ValueError("it does not begin as such a file does")
    begin = len(_START)
    written, rest = text[begin : begin + len(_ZEROS)], text[begin + len(_ZEROS) :]
    digest = hashlib.sha256(length + _START + _ZEROS + rest)
    table = json.loads(text)
    metadata = table.pop("__metadata__")
    tensors: dict[str, Tensor] = {}
    at = 8 + len(text)
    for name, entry in table.items():
        start, end = entry["data_offsets"]
        elements = torch.Size(entry["shape"]).numel()
        dtype = _BY_NAME[entry["dtype"]]
        if 8 + len(text) + start != at or end - start != elements * dtype.itemsize or at + end - start > size:
            raise ValueError(f"tensor {name!r} is not at the position in its header")
        tensors[name] = torch.empty(entry["shape"], dtype=dtype, device="cpu")
        file.readinto(memory(tensors[name]))  # pyright: ignore[reportAttributeAccessIssue]
        digest.update(memory(tensors[name]))
        at += end - start
    if at != size:
        raise ValueError(f"it has {size} bytes, but its header describes {at}")
    return table, metadata, tensors, digest.hexdigest().encode() == written


def _plain(name: str, tensor: Tensor) -> Tensor:
    if tensor.layout is not torch.strided or tensor.dtype not in _DTYPES:
        raise ValueError(f"tensor {name!r} is {tensor.dtype} and {tensor.layout}, which a file cannot hold")
    return tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()


def memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied: a view that is valid while the tensor lives."""
    if not tensor.nbytes:
        return memoryview(bytearray())
    return memoryview((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")
