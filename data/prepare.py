"""The folder of encoded data, which is written once.

    <cache>/<name>-<key>/  train.arrow valid.arrow test.arrow  meta.json
                           vocabulary/<number>.parquet  content/<number>.npy  truth.npz

Vocabularies and content are numbered like the features, so that column names do not become file names. The key is a
checksum of the options and of the source files' content. The folder appears complete or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.encode import FORMAT, encode
from data.fingerprint import cache_folder, fingerprints
from data.schema import DataError
from data.source import Source
from embcomp.files import replacing


def prepared(
    name: str,
    cache: str | Path | None,
    options: Mapping[str, Any],
    files: Sequence[Path],
    read: Callable[[], Source],
) -> Path:
    """Return the folder of the encoded data; it is made from `read()` if it does not exist.

    Args:
        name: the name of the data set.
        cache: the folder of all encoded data, by default `embcomp` in the user's cache folder.
        options: all options that the rows depend on, beside the files; values that JSON can hold.
        files: the source files, which must exist.
        read: a function that returns the rows.
    """
    for file in files:
        if not file.is_file():
            raise DataError(f"no file {file}; `python -m data fetch {name}` gets it or says where it is")
    key = hashlib.sha256(
        json.dumps([FORMAT, name, dict(options), fingerprints(files)], sort_keys=True).encode()
    ).hexdigest()
    root = Path(cache).expanduser() if cache else cache_folder()
    folder = root / f"{name}-{key[:16]}"
    if not folder.is_dir():
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"cannot make the cache folder {root} ({error.strerror}); give another with cache="
            ) from None
        with _locked(root / f"{folder.name}.lock"):
            if not folder.is_dir():
                part = root / f"{folder.name}.part"
                shutil.rmtree(part, ignore_errors=True)  # of a run that was killed: the lock is ours
                with replacing(folder, part):
                    encode(read(), part, name)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
