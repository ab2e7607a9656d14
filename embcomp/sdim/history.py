"""The record of one user in a behavior store: recent events and their bucket sums, in memory and as bytes."""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass, field

import numpy as np

from embcomp.sdim.encoder import BehaviorEncoder, Events
from embcomp.sdim.errors import CorruptRecord

DTYPES = ("float32", "float16", "int8")
MAX_EVENTS = 2**16 - 1
"""The most events of a user: counts are written as uint16."""
_TOKENS = 32
_FORMAT = 2
# Magic, format, dtype, tokens, groups, buckets of a group, width, events, changes, stamp, user, checksum of all else.
_HEADER = struct.Struct("<4sBBHHHIIi16s8sI")
_HEADER_1 = struct.Struct("<4sBBHHHIIi16sI")  # of embcomp 0.1: without the user, and a checksum of what follows alone
_MAGIC = b"SDIM"


@dataclass
class History:
    """The last events of a user and their bucket sums.

    Attributes:
        events: the item ids, int64 [n], oldest first.
        sums: the bucket sums of the events, float32 [groups, width, D].
        counts: the number of events in each sum, int64 [groups, width].
        stamp: the digest of the model and the hashes that made the sums.
        tokens: the tokens of the last appends, so that an append that is sent twice counts once.
        changes: the number of events added or removed since the sums were last made from all events.
    """

    events: np.ndarray
    sums: np.ndarray
    counts: np.ndarray
    stamp: bytes
    tokens: list[bytes] = field(default_factory=list)
    changes: int = 0

    @classmethod
    def encode(cls, encoder: BehaviorEncoder, events: np.ndarray, tokens: list[bytes] | None = None) -> History:
        """Make the history of these events, int64 [n]."""
        sdim = encoder.sdim
        sums = np.zeros((sdim.groups, sdim.width, sdim.embedding_dim), np.float32)
        history = cls(events, sums, np.zeros(sums.shape[:2], np.int64), digest(encoder.stamp), list(tokens or []))
        history._count(encoder(events), 1)
        return history

    def append(self, encoder: BehaviorEncoder, items: np.ndarray, added: Events, token: bytes, most: int) -> None:
        """Add events, int64 [n], and remove the oldest beyond `most`."""
        events = np.concatenate((self.events, items))
        gone, self.events = events[:-most], events[-most:]
        self._count(added, 1)
        if len(gone):
            self._count(encoder(gone), -1)
        self.sums[self.counts == 0] = 0.0  # removes what rounding has left of removed events
        self.changes += len(items) + len(gone)
        self.tokens = [*self.tokens, token][-_TOKENS:]

    def _count(self, events: Events, sign: int) -> None:
        groups = np.arange(len(self.sums))
        for codes, vector in zip(events.codes, events.vectors, strict=True):
            self.sums[groups, codes] += sign * vector
            self.counts[groups, codes] += sign

    def to_bytes(self, dtype: str, user: str) -> bytes:
        """Return the record as bytes, of the buckets that hold events, with sums in one of `DTYPES`.

        Args:
            dtype: the dtype of the sums; int8 has a float32 scale for each bucket.
            user: the name of the user, whose digest is part of the record.

        Raises:
            ValueError: a sum is beyond the range of the dtype.
        """
        held = self.sums[self.counts > 0]
        scales = np.empty(0, np.float32)
        if dtype == "int8":
            scales = np.abs(held).max(axis=1, initial=0.0) / 127
            held = np.rint(held / np.where(scales > 0, scales, 1)[:, None])
        with np.errstate(over="ignore"):
            written = held.astype(dtype)
        if not (np.isfinite(written).all() and np.isfinite(scales).all()):
            raise ValueError(
                f"bucket sums beyond the range of {dtype}: nothing was written; use float32, or scale items"
            )
        parts = (self.events, self.counts.astype("<u2"), scales, written)
        body = b"".join(self.tokens) + b"".join(part.tobytes() for part in parts)
        groups, width, dim = self.sums.shape
        header = _HEADER.pack(
            _MAGIC, _FORMAT, DTYPES.index(dtype), len(self.tokens), groups, width - 1, dim, len(self.events),
            self.changes, self.stamp, digest(user, 8), 0,
        )[:-4]  # fmt: skip
        return header + struct.pack("<I", zlib.crc32(body, zlib.crc32(header))) + body

    @classmethod
    def from_bytes(cls, record: bytes, user: str, where: str = "") -> History:
        """Read the bytes of `to_bytes`.

        Args:
            record: the stored bytes.
            user: the user whose record this should be.
            where: the store, with which the text of an error begins.

        Raises:
            CorruptRecord: the bytes are not a whole record of this user.
        """
        try:
            form = _HEADER_1 if record[:5] == _MAGIC + b"\1" else _HEADER
            magic, version, dtype, tokens, groups, width, dim, events, changes, stamp, *rest = form.unpack_from(record)
            body = memoryview(record)[form.size :]
            before = zlib.crc32(record[: form.size - 4]) if form is _HEADER else 0
            if magic != _MAGIC or version not in (1, _FORMAT) or zlib.crc32(body, before) != rest[-1]:
                raise ValueError("its checksum or format is wrong")
            if form is _HEADER and rest[0] != digest(user, 8):
                raise ValueError("it belongs to another user")
            width += 1
            kept, at = [], 0
            for _ in range(tokens):
                kept.append(bytes(body[at : at + 8]))
                at += 8

            def take(kind: str, count: int) -> np.ndarray:
                nonlocal at
                array = np.frombuffer(body, kind, count, at)
                at += array.nbytes
                return array

            ids = take("<i8", events).astype(np.int64)
            counts = take("<u2", groups * width).astype(np.int64).reshape(groups, width)
            occupied = int((counts > 0).sum())
            scales = take("<f4", occupied) if DTYPES[dtype] == "int8" else None
            held = take(DTYPES[dtype], occupied * dim).astype(np.float32).reshape(occupied, dim)
            sums = np.zeros((groups, width, dim), np.float32)
            sums[counts > 0] = held if scales is None else held * scales[:, None]
            if at != len(body):
                raise ValueError(f"it has {len(body)} bytes of {at}")
            return cls(ids, sums, counts, stamp, kept, changes)
        except (struct.error, ValueError, IndexError) as error:
            raise CorruptRecord(
                f"{where}user {user!r}: the record is damaged ({error}); forget the user, or restore a copy"
            ) from None


def digest(text: str, size: int = 16) -> bytes:
    """Return a short digest of a text."""
    return hashlib.blake2b(text.encode(), digest_size=size).digest()
