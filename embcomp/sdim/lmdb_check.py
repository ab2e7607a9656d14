"""A check of an LMDB file that reads it without LMDB, since LMDB trusts its pages and crashes on damaged ones.

LMDB's pages have no checksums, so the trees are walked from their roots: every page, pointer, size, order and count
must be as LMDB writes them, no page may have two owners, and the keys must be those that were written (`KeySum`).
Layout: `struct MDB_meta`, `MDB_page` and `MDB_node` of LMDB 0.9, 64 bits, little-endian.
"""

import hashlib
import mmap
import os
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_HEADER, _NODE = 16, 8  # bytes of the header of a page, of a node
_BRANCH, _LEAF, _OVERFLOW, _META = 1, 2, 4, 8
_BIG = 1  # flag of a node whose value has pages of its own
_NONE = 2**64 - 1  # the root of an empty tree
_META_FORM = struct.Struct("<QHHI II QQ IHHQQQQQ IHHQQQQQ QQ".replace(" ", ""))


class Broken(ValueError):
    """The file is damaged; the text says where."""


@dataclass
class KeySum:
    """The number of keys of a store and the sum of their hashes, which a lost or altered key changes.

    Attributes:
        txn: the transaction that wrote the sum last; another writer than this class does not update it.
    """

    count: int = 0
    total: int = 0
    txn: int = 0

    _FORM = struct.Struct("<Q16sQI")

    def add(self, key: bytes, sign: int = 1) -> None:
        """Add a key, or remove it with `sign` -1."""
        self.count += sign
        self.total = (self.total + sign * _hash(key)) % 2**128

    def to_bytes(self) -> bytes:
        """Return the sum with a checksum."""
        plain = self._FORM.pack(self.count, self.total.to_bytes(16, "little"), self.txn, 0)[:-4]
        return plain + struct.pack("<I", zlib.crc32(plain))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the bytes of `to_bytes`. Raise Broken if they are damaged."""
        if len(data) != cls._FORM.size or zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
            raise Broken("the record of its keys is damaged")
        count, total, txn, _ = cls._FORM.unpack(data)
        return cls(count, int.from_bytes(total, "little"), txn)


def _hash(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "little")


@dataclass
class _Tree:
    flags: int
    depth: int
    branches: int
    leaves: int
    overflow: int
    entries: int
    root: int


@dataclass
class _Meta:
    page_size: int
    free: _Tree
    main: _Tree
    last: int
    txn: int


def metas(path: Path) -> list[_Meta]:
    """Read the two meta pages, before or after a transaction under way. Raise Broken if they are damaged."""
    for attempt in range(20):
        try:
            return _metas(path)
        except Broken:  # perhaps it is being written
            if attempt == 19:
                raise
            time.sleep(0.005)
    raise AssertionError


def _metas(path: Path) -> list[_Meta]:
    metas: list[_Meta] = []
    with path.open("rb") as file:
        for number in (0, 1):
            data = os.pread(file.fileno(), _META_FORM.size, metas[0].page_size if metas else 0)
            if len(data) < _META_FORM.size:
                raise Broken(f"it is cut short, to {path.stat().st_size} bytes")
            page, _, flags, _, magic, version, _, _, *rest = _META_FORM.unpack(data)
            if (page, flags & _META, magic, version) != (number, _META, _MAGIC, _VERSION):
                raise Broken(f"page {number} is not a meta page of LMDB")
            size, *free = rest[:8]
            metas.append(_Meta(size, _Tree(*free), _Tree(*rest[9:16]), *rest[16:]))
            if size not in (2**power for power in range(9, 17)):
                raise Broken(f"its pages would have {size} bytes")
    if metas[0].page_size != metas[1].page_size:
        raise Broken("its meta pages differ in the size of a page")
    # The transactions take turns on the two pages; a new file has none.
    if any(meta.txn % 2 != number for number, meta in enumerate(metas) if meta.txn) or (
        abs(metas[0].txn - metas[1].txn) != 1 and any(meta.txn for meta in metas)
    ):
        raise Broken(f"its meta pages are of transactions {metas[0].txn} and {metas[1].txn}")
    return metas


def check_pages(path: Path, txn: int) -> KeySum:
    """Check all pages that an open transaction reads; return the sum of its keys. The transaction must stay open.

    Raises:
        Broken: a page, a pointer, a size or a count is wrong.
        LookupError: the transaction is not in a meta page any more: begin another one.
    """
    for meta in metas(path):
        if meta.txn == txn:
            return _Walk(path, meta).check()
    raise LookupError(txn)


class _Walk:
    def __init__(self, path: Path, meta: _Meta) -> None:
        self.meta, self.size = meta, meta.page_size
        with path.open("rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.pages = min(len(self.data) // self.size, meta.last + 1)
        self.used = bytearray(self.pages)
        self.big: list[tuple[int, int]] = []  # first page and bytes of values with pages of their own

    def check(self) -> KeySum:
        if self.pages < 2:
            raise Broken("it is cut short")
        self.used[:2] = b"\1\1"
        keys = KeySum()
        last = None
        for key, _ in self._tree(self.meta.main, "main"):
            if last is not None and key <= last:
                raise Broken(f"key {key!r} does not follow {last!r}")
            keys.add(key)
            last = key
        lists = [value for _, value in self._tree(self.meta.free, "free")]
        for pages in lists:
            self._check_free(pages)
        return keys

    def _tree(self, tree: _Tree, name: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield the keys in order, with the values of the free tree (empty bytes for the main tree)."""
        counts, self.big = [0, 0, 0], []
        entries = 0
        waiting: list[tuple[int, int, bytes | None, bytes | None]] = []
        if tree.root != _NONE:
            waiting.append((tree.root, tree.depth, None, None))
        while waiting:
            page, depth, low, high = waiting.pop()
            start = self._take(page, 1)
            leaf = depth == 1
            counts[leaf] += 1
            nodes = list(self._nodes(page, start, leaf))
            keys = [key for key, _, _, _ in nodes]
            inner = keys if leaf else keys[1:]  # LMDB never compares the first key of a branch
            if (
                name == "main"
                and inner
                and not ((low is None or low <= inner[0]) and (high is None or inner[-1] < high))
            ):
                raise Broken(f"page {page} holds keys of another page")
            if leaf:
                entries += len(nodes)
                yield from self._values(nodes, name)
            else:
                bounds = [low, *inner, high]
                children = [(child, depth - 1, bounds[i], bounds[i + 1]) for i, (_, child, _, _) in enumerate(nodes)]
                waiting.extend(reversed(children))
        counts[2] = self._check_big()
        wanted = [tree.branches, tree.leaves, tree.overflow, tree.entries]
        if [*counts, entries] != wanted:
            raise Broken(f"its {name} tree has {[*counts, entries]} pages and entries, {wanted} are noted")

    def _values(self, nodes: list[tuple[bytes, int, int, int]], name: str) -> Iterator[tuple[bytes, bytes]]:
        for key, at, size, flags in nodes:
            if flags & _BIG:
                page = int.from_bytes(self.data[at : at + 8], "little")
                self.big.append((page, size))
                at = page * self.size + _HEADER
                if not 2 <= page < self.pages or at + size > self.pages * self.size:
                    raise Broken(f"the value of {key!r} lies outside of the file")
            yield key, self.data[at : at + size] if name == "free" else b""

    def _take(self, page: int, number: int) -> int:
        """Mark pages as used and return where the first begins, in bytes. Raise Broken if one has another owner."""
        if not 2 <= page <= page + number <= self.pages:
            raise Broken(f"page {page} is missing: the file has {len(self.data)} bytes")
        if any(self.used[page : page + number]):
            raise Broken(f"page {page} is used twice")
        self.used[page : page + number] = b"\1" * number
        return page * self.size

    def _nodes(self, page: int, start: int, leaf: bool) -> Iterator[tuple[bytes, int, int, int]]:
        """Yield the nodes of a page: (key, page below, 0, 0) of a branch, (key, position, bytes, flags) of a leaf."""
        raw = self.data[start : start + self.size]
        number, _, flags, lower, upper = struct.unpack_from("<QHHHH", raw)
        if number != page or flags != (_LEAF if leaf else _BRANCH):
            raise Broken(f"page {page} says that it is page {number}, with flags {flags}")
        count = (lower - _HEADER) // 2
        if not (_HEADER < lower <= upper <= self.size and lower % 2 == 0 and count >= (1 if leaf else 2)):
            raise Broken(f"page {page} says that it has {count} nodes")
        places = struct.unpack_from(f"<{count}H", raw, _HEADER)
        spans: list[tuple[int, int]] = []
        for offset in places:
            if not upper <= offset <= self.size - _NODE:
                raise Broken(f"page {page} has a node at {offset}")
            low, high, kind, length = struct.unpack_from("<HHHH", raw, offset)
            at = offset + _NODE + length
            size = low | high << 16
            end = at + (0 if not leaf else 8 if kind & _BIG else size)
            if end > self.size or (leaf and kind & ~_BIG):
                raise Broken(f"page {page} has a node of {end - offset} bytes with flags {kind} at {offset}")
            spans.append((offset, end + end % 2))
            key = raw[offset + _NODE : at]
            yield (key, start + at, size, kind) if leaf else (key, size | kind << 32, 0, 0)
        spans.sort()
        if [upper, *(end for _, end in spans)] != [*(offset for offset, _ in spans), self.size]:
            raise Broken(f"page {page} has nodes that overlap")

    def _check_big(self) -> int:
        """Check the values that have pages of their own; return the number of these pages."""
        total = 0
        for page, size in sorted(self.big):
            start = page * self.size
            number, _, flags, count = struct.unpack_from("<QHHI", self.data, start)
            needed = (_HEADER - 1 + size) // self.size + 1
            if number != page or flags != _OVERFLOW or count < needed:
                raise Broken(f"page {page} is not the beginning of {needed} pages")
            self._take(page, count)
            total += count
        return total

    def _check_free(self, value: bytes) -> None:
        pages = np.frombuffer(value, np.uint64, len(value) // 8)
        if not len(pages) or int(pages[0]) + 1 > len(pages):
            raise Broken("a list of free pages is longer than its record")
        pages = pages[1 : int(pages[0]) + 1]
        if ((pages < 2) | (pages > self.meta.last)).any():
            raise Broken("a page that does not exist is listed as free")
        inside = pages[pages < self.pages].astype(np.int64)
        used = np.frombuffer(self.used, np.uint8)
        if used[inside].any() or len(np.unique(pages)) < len(pages):
            raise Broken("a page is listed as free and is in use")
        used[inside] = 1
