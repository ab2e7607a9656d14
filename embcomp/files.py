"""The one way in which embcomp writes files: whole or not at all, synced to the disk, with the umask's permissions."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

StrPath = str | os.PathLike[str]
Content = bytes | Iterable[bytes | memoryview] | Callable[[IO[bytes]], Any]


class Damaged(ValueError):
    """The error for a file whose content is not what was written; the text names the file."""


def write(path: StrPath, content: Content) -> None:
    """Write a file, and make its folder if needed. An existing file is replaced in one step or not at all.

    Args:
        path: the file.
        content: its bytes, its parts in order, or a function that writes them into an open file.

    Raises:
        OSError: the file cannot be written (a full disk, say); the text names it, and an existing file is unchanged.

    Example:
        >>> from pathlib import Path
        >>> from embcomp.files import write
        >>> write("notes.txt", b"one line")
        >>> Path("notes.txt").read_text()
        'one line'
    """
    with replacing(path) as part, part.open("wb") as file:
        if callable(content):
            content(file)
        else:
            file.writelines([content] if isinstance(content, bytes) else content)


@contextmanager
def replacing(path: StrPath, part: Path | None = None) -> Iterator[Path]:
    """Give a name beside `path` for a new file or folder, which replaces `path` when the block ends without error.

    A folder can replace only an empty folder. After an error the new file or folder is removed.

    Args:
        path: the file or folder.
        part: the name to give, for a caller that alone writes `path` and removes what a killed process left.

    Raises:
        OSError: the same errors as from `write`; other OSErrors of the block are raised in the same form.
    """
    path = Path(path)
    part = part or path.with_name(f".{path.name[:40]}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        for file in part.rglob("*") if part.is_dir() else ():
            sync(file)
        sync(part)
        os.replace(part, path)
        sync(path.parent)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk and not in a cache alone."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
