"""Where a behavior store keeps its bytes: LMDB, embedded in the process, or a Redis server, shared.

Both change what they hold in transactions. `update` reads keys, asks what to write, and writes that only if nobody
changed one of those keys in between; readers see all of it or nothing.
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
"""Values of the keys that were read -> what to write; None deletes. May be called again when others were faster."""

_KEYS = b"\0keys"  # the sum of all other keys
_MARK = "embcomp-store"  # a file beside that of LMDB: there was something in it
_NEEDS = f"a behavior store needs {{}}: {install('serving')}"


class Backend(Protocol):
    """Bytes by key."""

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]: ...
    def update(self, keys: Sequence[bytes], change: Change) -> None: ...
    def pages(self, prefix: bytes, size: int) -> Iterator[list[bytes]]: ...
    def close(self) -> None: ...


def open_backend(location: str | os.PathLike[str], **options: Any) -> Backend:
    """LMDB for a path, Redis for redis://, rediss:// or unix:// addresses."""
    text = os.fspath(location)
    return RedisBackend(text, **options) if "://" in text else LmdbBackend(text, **options)


class LmdbBackend:
    """A folder. Several processes may use it at once, on one machine; a write returns when it is on the disk.

    Args:
        path: the folder, made where it is missing.
        max_bytes: how large it may become; no more than addresses are taken before they are used.
        verify: walk the file's index first, some seconds for a million users: whether nothing is damaged and no user
            is missing. Without it LMDB answers from a damaged file, or ends the process.

    Raises:
        StoreDamaged: the file is not what was written.
        StoreError: it cannot be opened.
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
                lmdb_check.metas(self._data)  # before LMDB follows them to where they point
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
        """What the last transaction noted; counted where that was one of embcomp 0.1."""
        noted = transaction.get(_KEYS)
        if noted is not None:
            found = lmdb_check.KeySum.from_bytes(noted)
            if found.txn == transaction.id() - 1:
                return found
        found = lmdb_check.KeySum()
        with transaction.cursor() as cursor:
            for key in cursor.iternext(values=False):
                found.add(key, int(key != _KEYS))
        return found

    def _verify(self) -> None:
        """Raises lmdb_check.Broken where the file is damaged."""
        for _ in range(100):
            with self.env.begin() as transaction:
                try:
                    found = lmdb_check.check_pages(self._data, transaction.id())
                except LookupError:  # others have written meanwhile
                    continue
                noted = transaction.get(_KEYS)
                if noted is None and self._mark.exists():
                    raise lmdb_check.Broken("what was in it is gone")
                if noted is not None:
                    found.add(_KEYS, -1)
                    found.txn, wanted = transaction.id(), lmdb_check.KeySum.from_bytes(noted)
                    if wanted.txn > found.txn or (wanted.txn == found.txn and wanted != found):
                        raise lmdb_check.Broken(f"it holds {found.count} keys, {wanted.count} were written, or others")
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
        """Errors of LMDB as those of a store; a write that fails leaves nothing."""
        try:
            with self.env.begin(write=write) as transaction:
                yield transaction
        except self._lmdb.MapFullError as error:
            raise StoreFull(f"store {self.path} is full: open it with more than max_bytes={self.max_bytes}") from error
        except self._lmdb.MapResizedError as error:
            raise StoreFull(
                f"store {self.path} has grown beyond max_bytes={self.max_bytes} in another process: "
                "open it again with as many as there"
            ) from error
        except (self._lmdb.CorruptedError, self._lmdb.PageNotFoundError, lmdb_check.Broken) as error:
            raise self._damaged(error) from error
        except self._lmdb.Error as error:
            what = "nothing was written" if write else "nothing was read"
            if any(os.strerror(code) in str(error) for code in (ENOSPC, EDQUOT, EFBIG)):
                raise StoreFull(f"store {self.path}: the disk takes no more ({error}); {what}") from error
            raise StoreError(f"store {self.path}: {what} ({error})") from error


class RedisBackend:
    """A Redis or Valkey server.

    A write is acknowledged as soon as the server answers, so what survives its death is for the server to say:
    `appendonly yes` and `appendfsync always` lose nothing. A server that says otherwise is warned about.

    Args:
        url: redis://host:port/db, rediss://, unix://path.
        prefix: of all keys, where a server holds several stores.
        timeout: seconds to go on trying when the server is gone or others change the same users.
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
        # The client's own retries know nothing of tokens: `_tried` repeats whole transactions instead.
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
        """Repeat a call until it succeeds or time is up; a broken connection or a faster writer is no failure yet."""
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
                    raise StoreFull(f"store {self.name}: the server takes no more ({error})") from error
                raise StoreError(f"store {self.name}: {error}") from error
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, 0.1)

    def _warn_of_loss(self) -> None:
        try:
            found: dict[str, str] = self.client.config_get("append*", "maxmemory-policy")  # pyright: ignore
        except self._errors.RedisError:
            return  # hosted servers keep their settings to themselves
        if found.get("appendonly") != "yes" or found.get("appendfsync") != "always":
            warnings.warn(
                f"store {self.name}: the server may lose appends that it has acknowledged when it dies; "
                "set `appendonly yes` and `appendfsync always`",
                RuntimeWarning,
                stacklevel=4,
            )
        if (policy := found.get("maxmemory-policy", "")).startswith("allkeys"):
            warnings.warn(
                f"store {self.name}: the server throws users away when its memory is full ({policy}); "
                "set `maxmemory-policy noeviction`",
                RuntimeWarning,
                stacklevel=4,
            )
