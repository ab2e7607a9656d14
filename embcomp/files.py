"""The one way in which embcomp writes a file: whole or not at all, on the disk, readable by whom the umask allows."""

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
    """A file that is not what was written; the text names it."""


def write(path: StrPath, content: Content) -> None:
    """Write a file, making its folder where that is missing. A file that is there is replaced at once or not at all.

    Args:
        path: the file.
        content: its bytes, parts of them in order, or a function that writes them into an open file.

    Raises:
        OSError: it could not be written (a full disk); names the file, which is as it was.

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
def replacing(path: StrPath) -> Iterator[Path]:
    """A name beside `path` for a new file or folder, which takes the place of `path` when the block ends without error.

    A folder takes the place of none but an empty one. What an error leaves is removed.

    Raises:
        OSError: as `write`; so is any other OSError of the block.
    """
    path = Path(path)
    part = path.with_name(f".{path.name[:40]}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
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
