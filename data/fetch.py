"""Downloads that resume, are checked, and are complete or absent."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from data.schema import DataError
from data.sources import Archive
from embcomp.files import replacing

BLOCK = 1 << 20
_ON_PROGRESS = Callable[[int, int | None], None]


def fetch(archive: Archive, folder: Path, on_progress: _ON_PROGRESS = lambda done, total: None) -> list[Path]:
    """Download an archive and unpack its members into a folder; files that exist are left as they are.

    Args:
        on_progress: a function that is called with the bytes received and the bytes in all, None while unknown.

    Returns:
        The files written; none if all existed.

    Raises:
        DataError: the server refuses or keeps closing the connection, a checksum is wrong, or a member is missing.
    """
    if all((folder / name).is_file() for name in archive.members):
        return []
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / archive.url.rsplit("/", 1)[-1]
    if not path.is_file():
        download(archive.url, path, archive.checksum, on_progress)
    try:
        return unpack(path, archive.members, folder)
    finally:
        path.unlink()  # unpacked, or of no use


def download(
    url: str,
    path: Path,
    checksum: str | None = None,
    on_progress: _ON_PROGRESS = lambda done, total: None,
    *,
    tries: int = 5,
    pause: float = 1.0,
    timeout: float = 60.0,
) -> None:
    """Download into `path` by way of `path`.part, which a later call continues.

    Args:
        checksum: the expected checksum, "md5:..." or "sha256:..."; a file with another one is removed.
        tries: the number of attempts in a row that may end without a new byte.
        pause: the seconds before the second attempt, doubled each time.
        timeout: the seconds without a byte after which an attempt has failed.

    Raises:
        DataError: the same errors as from `fetch`.
    """
    part = path.with_name(path.name + ".part")
    failures, most = 0, _size(part)
    while True:
        try:
            complete = _attempt(url, part, on_progress, timeout)
            reason = "the connection broke off"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise DataError(f"{url}: the server answers {error.code} {error.reason}") from None
            complete, reason = False, f"the server answers {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            complete, reason = False, str(error)
        if complete:
            break
        failures = 0 if _size(part) > most else failures + 1
        most = max(most, _size(part))
        if failures >= tries:
            raise DataError(f"{url}: {reason}, {tries} times; {part} keeps the bytes received; run it to continue")
        time.sleep(pause * 2**failures if failures else 0)
    try:
        check(part, checksum)
    except DataError:
        part.unlink()
        raise
    os.replace(part, path)


def _attempt(url: str, part: Path, on_progress: _ON_PROGRESS, timeout: float) -> bool:
    """Continue the file `part`; return whether it is complete."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 416:  # nothing beyond `start`
                raise
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return True
            part.unlink()
            return False
    with response:
        if start and response.headers.get("Content-Range", "").split("-")[0] != f"bytes {start}":
            start = 0  # a server without ranges sends all of it
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with part.open("ab" if start else "wb") as file:
            done = start
            on_progress(done, total)
            while block := response.read(BLOCK):
                file.write(block)
                done += len(block)
                on_progress(done, total)
    return total is None or done == total


def unpack(archive: Path, members: Mapping[str, str | None], folder: Path) -> list[Path]:
    """Write the members, wherever they are in the archive, into `folder`, each one complete or not at all.

    Other members are not written, and names in the archive are not used as paths.
    """
    with _opened(archive) as files:
        missing = members.keys() - files.keys()
        if missing:
            raise DataError(f"{archive} holds no {min(missing)}")
        for name, checksum in members.items():
            with replacing(folder / name, folder / f"{name}.part") as part:
                with files[name]() as source, part.open("wb") as target:
                    shutil.copyfileobj(source, target, BLOCK)
                check(part, checksum)
    return [folder / name for name in members]


@contextmanager
def _opened(archive: Path) -> Iterator[dict[str, Callable[[], IO[bytes]]]]:
    """Open an archive and map file names without folders to functions that open its regular files."""
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as zip_file:
                entries = [entry for entry in zip_file.infolist() if not entry.is_dir()]
                yield {Path(entry.filename).name: partial(zip_file.open, entry) for entry in entries}
        else:
            with tarfile.open(archive) as tar_file:
                regular = [entry for entry in tar_file if entry.isreg()]
                yield {Path(entry.name).name: partial(_extract, tar_file, entry) for entry in regular}
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive} is damaged ({error}); fetch it again") from None


def _extract(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(entry)
    assert file is not None  # a regular file
    return file


def check(path: Path, checksum: str | None) -> None:
    """Raise DataError if the checksum of the file differs."""
    if checksum is None:
        return
    algorithm, wanted = checksum.split(":")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, algorithm).hexdigest()
    if digest != wanted:
        raise DataError(f"{path.name.removesuffix('.part')}: {algorithm} is {digest}, not {wanted}; it was removed")


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
