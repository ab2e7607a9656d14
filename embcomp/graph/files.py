"""The files of maps and mixtures: artifacts (`embcomp.artifact`), and files in the format of embcomp 0.1.

The latter format: 8 bytes of magic and version, the header's length (4 bytes, little-endian), the header as JSON, the
tensors' bytes one after the other, and the SHA-256 of everything before it.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import torch

from embcomp import artifact
from embcomp.files import Damaged, StrPath

MAGIC, VERSION = b"embcomp", 1
_START = len(MAGIC) + 1 + 4
_DIGEST = 32


def read_file(path: StrPath, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the header and the tensors of a map or mixture, both by name.

    Raises:
        ValueError: the file is of another kind or version, truncated, or edited.
    """
    path = Path(path)
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return artifact.load(path, kind)
    content = path.read_bytes()
    body = content[:-_DIGEST]
    if len(content) < _START + _DIGEST or hashlib.sha256(body).digest() != content[-_DIGEST:]:
        raise Damaged(f"{path}: the checksum does not fit: the file is truncated or was changed; write it again")
    if content[len(MAGIC)] != VERSION:
        raise ValueError(
            f"{path}: written in version {content[len(MAGIC)]} of the format, this embcomp reads {VERSION}"
        )
    (length,) = struct.unpack_from("<I", content, _START - 4)
    header = json.loads(body[_START : _START + length])
    if header.pop("kind") != kind:
        raise ValueError(f"{path}: does not hold a {kind}")
    tensors: dict[str, Any] = {}
    at = _START + length
    for name, (dtype, shape) in header.pop("tensors").items():
        empty = torch.empty(shape, dtype=getattr(torch, dtype), device="cpu")
        buffer = bytearray(body[at : at + empty.nbytes])
        tensors[name] = torch.frombuffer(buffer, dtype=empty.dtype).view(shape) if buffer else empty
        at += empty.nbytes
    return header, tensors
