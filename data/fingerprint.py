"""The checksums of files, which are cached as long as a file is unchanged."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from embcomp.files import write

_RACY = 2_000_000_000  # nanoseconds: a file that young may change once more within one tick of its clock


def cache_folder() -> Path:
    """Return the folder `embcomp` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embcomp"


def fingerprint(path: Path) -> str:
    """Return the checksum of a file's content, 32 hexadecimal digits.

    The checksum is kept in the cache folder under the file's size, modification time, inode and the inode's time of
    change (ctime). Unlike the modification time, ctime cannot be set back by `touch` or `cp -p`.
    """
    note = cache_folder() / "fingerprints" / hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
    seen = state(path)
    with suppress(OSError, ValueError):
        known = json.loads(note.read_text())
        if isinstance(known, list) and known[:-1] == seen:
            return known[-1]
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    if state(path) == seen and time.time_ns() - max(seen[1:3]) > _RACY:
        with suppress(OSError):  # a cache that cannot be written only costs time
            write(note, json.dumps([*seen, checksum]).encode())
    return checksum


def fingerprints(files: Sequence[Path]) -> list[tuple[str, str]]:
    """Return the name and checksum of each file; names are relative to the common folder."""
    if not files:
        return []
    folder = os.path.commonpath([file.parent for file in files])
    return [(file.relative_to(folder).as_posix(), fingerprint(file)) for file in files]


def state(path: Path) -> list[int]:
    """Return the file attributes that change if the content does."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
