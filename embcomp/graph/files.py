"""One file of tensors with a header: versioned, with a checksum, written whole or not at all.

Layout: 8 bytes of magic and version, the header's length (4 bytes, little-endian), the header as JSON, the tensors'
bytes one after the other, SHA-256 of all that.
"""

import ctypes
import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAGIC, VERSION = b"embcomp", 1
_START = len(MAGIC) + 1 + 4
_DIGEST = 32


def write_file(
    path: str | os.PathLike[str], kind: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Writes the file, replacing what is there.

    Args:
        path: where to; its folder must exist.
        kind: what the file holds, checked by `read_file`.
        header: JSON values.
        tensors: by name, any dtype and shape, on any device.
    """
    path = Path(path)
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    shapes = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in flat.items()}
    text = json.dumps({"kind": kind, "tensors": shapes, **header}).encode()
    digest = hashlib.sha256()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            parts = [MAGIC + bytes([VERSION]), struct.pack("<I", len(text)), text]
            for part in [*parts, *(ctypes.string_at(t.data_ptr(), t.nbytes) for t in flat.values())]:
                digest.update(part)
                file.write(part)
            file.write(digest.digest())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_file(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The header and the tensors of a file that `write_file` wrote, both by name.

    Raises:
        ValueError: the file is of another kind or version, truncated, or edited.
    """
    content = Path(path).read_bytes()
    if content[: len(MAGIC)] != MAGIC or len(content) < _START + _DIGEST:
        raise ValueError(f"{path}: not a file of embcomp, or cut short ({len(content)} bytes)")
    if content[len(MAGIC)] != VERSION:
        raise ValueError(
            f"{path}: written in version {content[len(MAGIC)]} of the format, this embcomp reads {VERSION}"
        )
    body = content[:-_DIGEST]
    if hashlib.sha256(body).digest() != content[-_DIGEST:]:
        raise ValueError(f"{path}: the checksum does not fit: the file is truncated or was changed; write it again")
    (length,) = struct.unpack_from("<I", content, _START - 4)
    header = json.loads(body[_START : _START + length])
    if header["kind"] != kind:
        raise ValueError(f"{path}: holds a {header['kind']}, not a {kind}")
    tensors: dict[str, Any] = {}
    at = _START + length
    for name, (dtype, shape) in header.pop("tensors").items():
        empty = torch.empty(shape, dtype=getattr(torch, dtype), device="cpu")
        part = bytearray(body[at : at + empty.nbytes])
        tensors[name] = torch.frombuffer(part, dtype=empty.dtype).view(shape) if part else empty
        at += empty.nbytes
    return header, tensors
