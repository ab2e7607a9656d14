"""The file of an exported program: torch's archive, with a checksum of everything before it in its comment.

The last 64 bytes of a file are the SHA-256 of the other bytes, in hexadecimal digits. torch ignores the comment, so
that a server does not need embcomp; `load` checks it first.
"""

import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import IO

import torch
from torch.export import ExportedProgram

from embcomp.files import Damaged, StrPath, replacing

_SIGN = b"embcomp sha256 "
_DIGITS = 64
_VERSION = "embcomp_version"
_END = b"PK\5\6"  # of the last record of an archive, 22 bytes with an empty comment


def save(program: ExportedProgram, path: StrPath, version: str | None = None) -> None:
    """Write a program. An existing file is replaced in one step or not at all. Raise OSError, naming the file."""
    extra = {} if version is None else {_VERSION: version}
    with replacing(path) as part, part.open("w+b") as file:
        stream = _Stream(file)
        torch.export.save(program, stream, extra_files=extra)  # pyright: ignore[reportArgumentType]
        if stream.error is not None:
            raise stream.error
        file.seek(-22, os.SEEK_END)
        end = file.read()
        assert end[:4] + end[-2:] == _END + b"\0\0", "torch has left a comment of its own"
        file.seek(-2, os.SEEK_END)
        file.write((len(_SIGN) + _DIGITS).to_bytes(2, "little") + _SIGN)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.write(digest.encode())


class _Stream(io.RawIOBase):
    """A file for torch's writer, which ends the process if a write raises: the first error is kept for later."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            if self.error is None:
                self.file.write(data)
        except OSError as error:
            self.error = error
        return len(data)

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0  # torch asks for it once, when all is written


def version_of(path: StrPath) -> str | None:
    """Return the version with which `embcomp.export` stamped a file; None without a stamp. Nothing is executed.

    Args:
        path: the file.

    Raises:
        Damaged: the file is not an archive (also a ValueError).
        FileNotFoundError: there is no such file.

    Example:
        >>> import torch, embcomp
        >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 32), torch.nn.Linear(32, 1))
        >>> report = embcomp.export(model, "monday.pt2", (torch.arange(4),), version="2026-11-30")
        >>> embcomp.serving.version_of("monday.pt2")
        '2026-11-30'
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"extra/{_VERSION}")]
            return archive.read(names[0]).decode() if names else None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, UnicodeDecodeError) as error:
        raise Damaged(f"{path} is damaged, or not an exported program ({error})") from None


def load(path: StrPath, *, version: str | None = None) -> ExportedProgram:
    """Load a program that `embcomp.export` wrote, after checking its checksum.

    Like `torch.export.load`, which it calls, it may run code from the file: load only files from sources whose code you
    would run.

    Args:
        path: the file.
        version: the version that the file must be stamped with; None accepts any.

    Raises:
        Damaged: the file is cut short or was changed (also a ValueError).
        ValueError: the file is not an exported program, has another version, or needs packages that are not imported.
        FileNotFoundError: there is no such file.

    Example:
        >>> import torch, embcomp
        >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 32), torch.nn.Linear(32, 1))
        >>> report = embcomp.export(model, "small.pt2", (torch.arange(4),))
        >>> embcomp.serving.load("small.pt2").module()(torch.tensor([0, 49])).shape
        torch.Size([2, 1])
    """
    path = Path(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(size - _DIGITS - len(_SIGN), 0))
        tail = file.read()
        if tail.startswith(_SIGN) and len(tail) == len(_SIGN) + _DIGITS:
            digest, left = hashlib.sha256(), size - _DIGITS
            file.seek(0)
            while left and (block := file.read(min(1 << 20, left))):
                digest.update(block)
                left -= len(block)
            if digest.hexdigest().encode() != tail[len(_SIGN) :]:
                raise Damaged(f"{path} is damaged or was edited: its checksum does not fit; export it again")
        else:
            _check_old(path)
    stamped = version_of(path) if version is not None else None
    if stamped != version:
        raise ValueError(
            f"{path} holds version {stamped!r}, and version {version!r} is wanted: vectors of two versions must not "
            "meet; load the file of that version, or align the models first (embcomp.align_)"
        )
    try:
        return torch.export.load(path)
    except Exception as error:
        raise ValueError(f"{path} cannot be loaded as a program of this torch: {error}") from error


def _check_old(path: Path) -> None:
    """Check the records of a file of embcomp 0.1, which has no checksum of the whole. Raise Damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
            if archive.comment or not any(name.endswith("archive_format") for name in archive.namelist()):
                raise Damaged(f"{path} is damaged, or not an exported program")
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise Damaged(f"{path} is damaged, or not an exported program ({error})") from None
    if wrong:
        raise Damaged(f"{path} is damaged: the checksum of {wrong} in it does not fit")
