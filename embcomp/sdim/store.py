"""The behavior store, which keeps every user's buckets up to date event by event."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch

from embcomp.sdim.backends import open_backend
from embcomp.sdim.buckets import Buckets
from embcomp.sdim.encoder import BehaviorEncoder
from embcomp.sdim.errors import CorruptRecord, StampMismatch
from embcomp.sdim.history import DTYPES, MAX_EVENTS, History, digest

User = str | int
Items = Sequence[int] | np.ndarray | torch.Tensor

_STAMP = b"stamp"
_USER = b"u:"
_USER_BYTES = 400  # LMDB's keys end at 511
_ENCODE_ANEW = {"float32": 4096, "float16": 64, "int8": 64}
"""The number of changes after which sums are made from the events again, so that rounding does not add up."""


class BehaviorStore:
    """The histories of users as bucket sums of SDIM: the state of a Behavior Sequence Encoding server.

    A user is a record of at most `max_events` recent item ids and their bucket sums. `append` adds events to the sums
    and removes the oldest; the others are not encoded again. Every change is one transaction: it is durable when
    `append` returns, and readers see whole records. Threads and processes may share a store (open it in each process;
    after a fork, not before).

    Args:
        location: a folder, for LMDB; or `redis://host:port/db`, `rediss://`, `unix://`.
        encoder: the item embedding and the hashes. Its stamp becomes that of the store.
        max_events: the number of recent events kept per user.
        dtype: the dtype of stored sums: "float32", "float16" or "int8".
        reencode: take over a store of another model. Records are then encoded with this model from their item ids, when
            they are read or appended to, or all at once by `reencode`; processes that still use the old model are
            refused. Items that the new model does not have are dropped.
        options: the options of the backend: `max_bytes` and `verify` (LMDB), `prefix` and `timeout` (Redis).

    Raises:
        StampMismatch: the store holds another model, now or at any later call.
        StoreError: the store cannot be opened (`StoreFull`, `StoreUnavailable`, `StoreDamaged`: see each).
        ValueError: a setting is out of range.

    Example:
        >>> import torch
        >>> from embcomp.sdim import SDIM, BehaviorEncoder, BehaviorStore
        >>> items, sdim = torch.nn.Embedding(1000, 16), SDIM(16)
        >>> with BehaviorStore("behaviors", BehaviorEncoder(sdim, items, version="1")) as store:
        ...     held = store.append("ann", [7, 42, 7])
        ...     buckets = store.fetch(["ann", "nobody"])
        >>> held, buckets.counts[:, 0].sum(-1).tolist()
        (3, [3.0, 0.0])
        >>> candidates = items(torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4]]))
        >>> sdim.query(candidates, buckets).shape
        torch.Size([2, 4, 16])
    """

    def __init__(
        self,
        location: str | os.PathLike[str],
        encoder: BehaviorEncoder,
        *,
        max_events: int = 1024,
        dtype: str = "float32",
        reencode: bool = False,
        **options: Any,
    ) -> None:
        if not 1 <= max_events <= MAX_EVENTS:
            raise ValueError(f"max_events must be in [1, {MAX_EVENTS}], got {max_events}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        self.location = os.fspath(location)
        self._name = self.location.rsplit("@", 1)[-1]  # without a password
        self.encoder = encoder
        self.max_events = max_events
        self.dtype = dtype
        self._stamp = encoder.stamp.encode()
        self._digest = digest(encoder.stamp)
        self._closing = threading.Event()
        self._workers: list[threading.Thread] = []
        self._backend = open_backend(location, **options)

        def claim(values: list[bytes | None]) -> dict[bytes, bytes | None]:
            if values[0] is not None and not reencode:
                self._check_stamp(values[0])
            return {} if values[0] == self._stamp else {_STAMP: self._stamp}

        try:
            self._backend.update([_STAMP], claim)
        except BaseException:
            self._backend.close()
            raise

    def append(self, user: User, items: Items, *, token: str | None = None) -> int:
        """Add events of a user, in the order of time.

        Args:
            user: the name of the user; 7 and "7" are the same.
            items: the item ids, [n].
            token: the name of this append. One that is repeated with its token, because the caller does not know
                whether it succeeded, counts once (as long as it is among the last 32 of the user).

        Returns:
            The number of events kept of the user.

        Raises:
            IndexError: the model does not have one of the ids.
            ValueError: ids are not integers, or a vector is not finite.
            StoreError: see the class. Nothing was written, or (`StoreUnavailable`) perhaps all of it: repeat the call
                with its token.
        """
        return self.append_many({user: items}, token=token)[user]

    def append_many(self, events: Mapping[User, Items], *, token: str | None = None) -> dict[User, int]:
        """Do `append` for several users in one transaction: all are written, or none."""
        if not isinstance(events, Mapping):
            raise ValueError(f"events must map users to their items, got {type(events).__name__}: give {{user: items}}")
        mark = os.urandom(8) if token is None else digest(token, 8)
        keys = [_key(user) for user in events]
        if len(set(keys)) < len(keys):
            raise ValueError(f"a user is named twice (7 and '7' are the same): {list(events)}")
        added = [item_ids(items)[-self.max_events :] for items in events.values()]
        encoded = [self.encoder(ids) for ids in added]
        held: dict[User, int] = {}

        def change(values: list[bytes | None]) -> dict[bytes, bytes | None]:
            self._check_stamp(values[0])
            changes: dict[bytes, bytes | None] = {}
            for user, key, record, ids, codes in zip(events, keys, values[1:], added, encoded, strict=True):
                history = self._history(record, user)
                if mark not in history.tokens:
                    history.append(self.encoder, ids, codes, mark, self.max_events)
                    if history.changes >= _ENCODE_ANEW[self.dtype]:
                        history = History.encode(self.encoder, history.events, history.tokens)
                    changes[key] = history.to_bytes(self.dtype, str(user))
                held[user] = len(history.events)
            return changes

        self._backend.update([_STAMP, *keys], change)
        return held

    def fetch(self, users: Iterable[User]) -> Buckets:
        """Return the buckets of B users, float32 sums [B, groups, 2^hash_width, D]; zeros for unknown users.

        Raises:
            ValueError: one user was given instead of a list of users.
            StoreError: see the class.
        """
        if isinstance(users, str | bytes | int):  # a string is an iterable of strings, each of them a user's name
            raise ValueError(f"users must be a list of users, got {users!r}: give [{users!r}]")
        users, sdim = list(users), self.encoder.sdim
        sums = np.zeros((len(users), sdim.groups, sdim.width, sdim.embedding_dim), np.float32)
        counts = np.zeros(sums.shape[:3], np.float32)
        for row, (user, record) in enumerate(zip(users, self._read(users), strict=True)):
            if record is not None:
                history = self._history(record, user)
                sums[row], counts[row] = history.sums, history.counts
        return Buckets(torch.from_numpy(sums), torch.from_numpy(counts))

    def events(self, user: User) -> list[int]:
        """Return the item ids kept of a user, oldest first; empty for an unknown user."""
        (record,) = self._read([user])
        return [] if record is None else self._history(record, user).events.tolist()

    def forget(self, user: User) -> None:
        """Delete all that is known of a user."""
        key = _key(user)
        self._backend.update([_STAMP, key], lambda values: self._check_stamp(values[0]) or {key: None})

    def reencode(self) -> int:
        """Encode all records of earlier models with this one; return their number. Others may write meanwhile."""
        done = 0

        def change(values: list[bytes | None]) -> dict[bytes, bytes | None]:
            self._check_stamp(values[0])
            changes: dict[bytes, bytes | None] = {}
            for key, record in zip(page, values[1:], strict=True):
                if record is not None:
                    user = key.removeprefix(_USER).decode()
                    history = self._decoded(record, user)
                    if history.stamp != self._digest:
                        changes[key] = self._renewed(history).to_bytes(self.dtype, user)
            nonlocal changed
            changed = len(changes)
            return changes

        for page in self._backend.pages(_USER, size=16):  # small pages: writers wait for each
            if self._closing.is_set():
                break
            changed = 0
            self._backend.update([_STAMP, *page], change)
            done += changed
        return done

    def reencode_in_background(self) -> Future[int]:
        """Run `reencode` in a thread; the future holds its number or its error. `close` ends it between two pages."""
        future: Future[int] = Future()

        def work() -> None:
            try:
                future.set_result(self.reencode())
            except BaseException as error:
                future.set_exception(error)

        thread = threading.Thread(target=work, name="reencode", daemon=True)
        self._workers.append(thread)
        thread.start()
        return future

    def check(self) -> None:
        """Raise StoreError if the store does not answer or holds another model."""
        self._read([])

    def close(self) -> None:
        """End the work in the background and close the store."""
        self._closing.set()
        for worker in self._workers:
            worker.join()
        self._backend.close()

    def __enter__(self) -> BehaviorStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read(self, users: Sequence[User]) -> list[bytes | None]:
        stamp, *records = self._backend.read([_STAMP, *map(_key, users)])
        self._check_stamp(stamp)
        return records

    def _history(self, record: bytes | None, user: User) -> History:
        """Return the history of a record, encoded with this model."""
        if record is None:
            return History.encode(self.encoder, np.empty(0, np.int64))
        history = self._decoded(record, str(user))
        return history if history.stamp == self._digest else self._renewed(history)

    def _decoded(self, record: bytes, user: str) -> History:
        history, sdim = History.from_bytes(record, user, f"store {self._name}, "), self.encoder.sdim
        shape = (sdim.groups, sdim.width, sdim.embedding_dim)
        if history.stamp == self._digest and history.sums.shape != shape:
            raise CorruptRecord(f"store {self._name}, user {user!r}: the record has sums of shape {history.sums.shape}")
        return history

    def _renewed(self, history: History) -> History:
        known = history.events[self.encoder.known(history.events)]
        return History.encode(self.encoder, known, history.tokens)

    def _check_stamp(self, stamp: bytes | None) -> None:
        if stamp != self._stamp:
            holds = "no model" if stamp is None else repr(stamp.decode(errors="replace"))
            raise StampMismatch(
                f"store {self._name} holds {holds}, this is {self.encoder.stamp!r}: "
                "use the encoder of that model, or take the store over with reencode=True"
            )


def _key(user: User) -> bytes:
    if isinstance(user, bool) or not isinstance(user, (str, int, np.integer)):
        raise ValueError(f"user must be a string or an integer, got {user!r}")
    name = str(user).encode()
    if not 1 <= len(name) <= _USER_BYTES:
        raise ValueError(f"user has a name of {len(name)} bytes, expected 1 to {_USER_BYTES}: {str(user)[:40]!r}")
    return _USER + name


def item_ids(items: Items) -> np.ndarray:
    """Return ids as int64 [n]. Raise ValueError if they are not integers."""
    ids = np.asarray(items)
    if ids.size == 0:
        return np.empty(0, np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"items must be a list of integer ids, got {ids.dtype} {list(ids.shape)}")
    return ids.astype(np.int64)
