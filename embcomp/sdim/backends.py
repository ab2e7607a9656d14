"""The backends of a behavior store: LMDB in a folder, used by processes of one machine, or a shared Redis server.

Both write in transactions. `update` reads keys, calls a function that returns the changes, and writes them only if no
other writer changed one of these keys in between; a reader sees all changes or none.
"""

from __future__ import annotations

import os
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from typing import Any, Protocol

from embcomp.extras import install
from embcomp.files import write
from embcomp.sdim import lmdb_check
from embcomp.sdim.errors import StoreDamaged, StoreError, StoreFull, StoreUnavailable

Change = Callable[[list[bytes | None]], Mapping[bytes, bytes | None]]
"""A function of the values read that returns the changes by key, None to delete; repeated if a writer was faster."""

_KEYS = b"\0keys"  # the sum of all other keys
_MARK = "embcomp-store"  # a file beside that of LMDB, once something has been written
_NEEDS = f"a behavior store needs {{}}: {install('serving')}"


class Backend(Protocol):
    """The interface of both backends: bytes by key."""

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]: ...
    def update(self, keys: Sequence[bytes], change: Change) -> None: ...
    def pages(self, prefix: bytes, size: int) -> Iterator[list[bytes]]: ...
    def close(self) -> None: ...


def open_backend(location: str | os.PathLike[str], **options: Any) -> Backend:
    """Open LMDB for a path, Redis for an address that begins with redis://, rediss:// or unix://."""
    text = os.fspath(location)
    return RedisBackend(text, **options) if "://" in text else LmdbBackend(text, **options)


class LmdbBackend:
    """A folder with an LMDB file. Processes of one machine may share it; a write returns when it is on the disk.

    Args:
        path: the folder; it is made if it does not exist.
        max_bytes: the largest size of the file. This reserves addresses; memory and disk are taken as they are used.
        verify: check the file's index first, which takes seconds for a million users: that no page is damaged and no
            user is missing. Without this check LMDB answers from a damaged file, or ends the process.

    Raises:
        StoreDamaged: the file differs from the one that was written.
        StoreError: the file cannot be opened.
    """

    def __init__(self, path: str, max_bytes: int = 2**36, verify: bool = True) -> None:
        try:
            import lmdb
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(_NEEDS.format("lmdb")) from error
        self._lmdb, self.path, self.max_bytes = lmdb, path, max_bytes
        self._data, self._mark = Path(path, "data.mdb"), Path(path, _MARK)
        try:
            os.makedirs(path, exist_ok=True)
            if self._data.exists() and self._data.stat().st_size:
                lmdb_check.metas(self._data)  # before LMDB follows their pointers
            self.env = lmdb.open(path, map_size=max_bytes, max_readers=1024)
        except lmdb_check.Broken as error:
            raise self._damaged(error) from None
        except (lmdb.Error, OSError) as error:
            raise StoreError(f"store {path}: cannot be opened ({error})") from error
        try:
            self.env.reader_check()  # readers that were killed would keep old pages alive
            if verify:
                self._verify()
        except lmdb_check.Broken as error:
            self.env.close()
            raise self._damaged(error) from None

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._transaction() as transaction:
            return [transaction.get(key) for key in keys]

    def update(self, keys: Sequence[bytes], change: Change) -> None:
        with self._transaction(write=True) as transaction:
            changes = change([transaction.get(key) for key in keys])
            if not changes:
                return
            held = self._sum_of_keys(transaction)
            for key, value in changes.items():
                if value is None:
                    held.add(key, -int(transaction.delete(key)))
                else:
                    held.add(key, int(transaction.get(key) is None))
                    transaction.put(key, value)
            held.txn = transaction.id()
            transaction.put(_KEYS, held.to_bytes())
        if not self._mark.exists():
            write(self._mark, b"A behavior store of embcomp, whose data are in data.mdb.\n")

    def _sum_of_keys(self, transaction: Any) -> lmdb_check.KeySum:
        """Return the sum of the last transaction; count it anew if that was one of embcomp 0.1, which writes none."""
        noted = transaction.get(_KEYS)
        if noted is not None:
            keys = lmdb_check.KeySum.from_bytes(noted)
            if keys.txn == transaction.id() - 1:
                return keys
        keys = lmdb_check.KeySum()
        with transaction.cursor() as cursor:
            for key in cursor.iternext(values=False):
                keys.add(key, int(key != _KEYS))
        return keys

    def _verify(self) -> None:
        """Raise lmdb_check.Broken if the file is damaged."""
        for _ in range(100):
            with self.env.begin() as transaction:
                try:
                    keys = lmdb_check.check_pages(self._data, transaction.id())
                except LookupError:  # another process has written meanwhile
                    continue
                noted = transaction.get(_KEYS)
                if noted is None and self._mark.exists():
                    raise lmdb_check.Broken("its records are gone")
                if noted is not None:
                    keys.add(_KEYS, -1)
                    keys.txn, wanted = transaction.id(), lmdb_check.KeySum.from_bytes(noted)
                    if wanted.txn > keys.txn or (wanted.txn == keys.txn and wanted != keys):
                        raise lmdb_check.Broken(f"it holds {keys.count} keys, not the {wanted.count} that were written")
                return

    def _damaged(self, error: Exception) -> StoreDamaged:
        return StoreDamaged(f"store {self.path}: {self._data} is damaged ({error}); restore a copy")

    def pages(self, prefix: bytes, size: int) -> Iterator[list[bytes]]:
        start = prefix
        while True:
            with self._transaction() as transaction, transaction.cursor() as cursor:
                page = []
                if cursor.set_range(start):
                    for key in cursor.iternext(values=False):
                        if len(page) == size or not key.startswith(prefix):
                            break
                        page.append(bytes(key))
            if not page:
                return
            yield page
            start = page[-1] + b"\0"

    def close(self) -> None:
        self.env.close()

    @contextmanager
    def _transaction(self, write: bool = False) -> Iterator[Any]:
        """Open a transaction whose LMDB errors are raised as store errors; a write that fails writes nothing."""
        try:
            with self.env.begin(write=write) as transaction:
                yield transaction
        except self._lmdb.MapFullError as error:
            raise StoreFull(f"store {self.path} is full: open it with more than max_bytes={self.max_bytes}") from error
        except self._lmdb.MapResizedError as error:
            raise StoreFull(
                f"store {self.path} has grown beyond max_bytes={self.max_bytes} in another process: "
                "open it again with the same max_bytes"
            ) from error
        except (self._lmdb.CorruptedError, self._lmdb.PageNotFoundError, lmdb_check.Broken) as error:
            raise self._damaged(error) from error
        except self._lmdb.Error as error:
            what = "nothing was written" if write else "nothing was read"
            if any(os.strerror(code) in str(error) for code in (ENOSPC, EDQUOT, EFBIG)):
                raise StoreFull(f"store {self.path}: the disk is full ({error}); {what}") from error
            raise StoreError(f"store {self.path}: {what} ({error})") from error


class RedisBackend:
    """A Redis or Valkey server.

    A write is acknowledged as soon as the server answers, so the server's settings decide what survives its crash: with
    `appendonly yes` and `appendfsync always` nothing is lost. Other settings raise a warning.

    Args:
        url: the address: redis://host:port/db, rediss:// or unix://path.
        prefix: the prefix of all keys, for a server that holds several stores.
        timeout: the seconds to keep trying if the server does not answer or other writers change the same users.
    """

    def __init__(self, url: str, prefix: str = "embcomp:", timeout: float = 5.0) -> None:
        try:
            import redis
            import redis.exceptions
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(_NEEDS.format("redis")) from error
        self._errors, self.prefix, self.timeout = redis.exceptions, prefix.encode(), timeout
        # The client's own retries would repeat single commands: `_tried` repeats whole transactions instead.
        self.client = redis.Redis.from_url(
            url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
        )
        self.name = url.rsplit("@", 1)[-1]  # without a password
        self._tried(self.client.ping)
        self._warn_of_loss()

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        names = [self.prefix + key for key in keys]
        return self._tried(lambda: self.client.mget(names))

    def update(self, keys: Sequence[bytes], change: Change) -> None:
        names = [self.prefix + key for key in keys]

        def once() -> None:
            with self.client.pipeline() as pipe:
                pipe.watch(*names)
                changes = change(pipe.mget(names))  # pyright: ignore[reportArgumentType]
                pipe.multi()
                for key, value in changes.items():
                    pipe.delete(self.prefix + key) if value is None else pipe.set(self.prefix + key, value)
                pipe.execute()

        self._tried(once)

    def pages(self, prefix: bytes, size: int) -> Iterator[list[bytes]]:
        cursor, pattern = 0, re.sub(rb"([*?\[\]^\\])", rb"\\\1", self.prefix + prefix) + b"*"
        while True:
            cursor, names = self._tried(lambda at=cursor: self.client.scan(at, match=pattern, count=size))
            if names:
                yield [name[len(self.prefix) :] for name in names]
            if not cursor:
                return

    def close(self) -> None:
        self.client.close()

    def _tried(self, call: Callable[[], Any]) -> Any:
        """Repeat a call, after broken connections and if other writers were faster, until it succeeds or time is up."""
        end, pause = time.monotonic() + self.timeout, 0.001
        while True:
            try:
                return call()
            except (self._errors.ConnectionError, self._errors.TimeoutError, self._errors.WatchError) as error:
                if time.monotonic() > end:
                    busy = isinstance(error, self._errors.WatchError)
                    why = "too many writers change the same users" if busy else f"the server does not answer ({error})"
                    raise StoreUnavailable(f"store {self.name}: {why}; tried for {self.timeout} s") from error
            except self._errors.RedisError as error:
                if isinstance(error, self._errors.OutOfMemoryError) or "MISCONF" in str(error):
                    raise StoreFull(f"store {self.name}: the server is full ({error})") from error
                raise StoreError(f"store {self.name}: {error}") from error
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, 0.1)

    def _warn_of_loss(self) -> None:
        try:
            settings: dict[str, str] = self.client.config_get("append*", "maxmemory-policy")  # pyright: ignore
        except self._errors.RedisError:
            return  # hosted servers do not tell their settings
        if settings.get("appendonly") != "yes" or settings.get("appendfsync") != "always":
            warnings.warn(
                f"store {self.name}: the server may lose appends that it has acknowledged when it dies; "
                "set `appendonly yes` and `appendfsync always`",
                RuntimeWarning,
                stacklevel=4,
            )
        if (policy := settings.get("maxmemory-policy", "")).startswith("allkeys"):
            warnings.warn(
                f"store {self.name}: the server deletes users when its memory is full ({policy}); "
                "set `maxmemory-policy noeviction`",
                RuntimeWarning,
                stacklevel=4,
            )
