"""Clustering of graphs larger than memory: minhash keeps a few neighbours of each id while the interactions stream."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from embcomp.columns import parquet_files, readable
from embcomp.graph.clustering import Clusters, cluster
from embcomp.graph.edges import MAX_IDS, Edges
from embcomp.ops import native
from embcomp.ops.hashing import hash_key

MOST_HASHES = 64
_ROWS = 1 << 20  # interactions of a block that is read from a file
_EMPTY = np.uint32(0xFFFFFFFF)
_FIRST, _SECOND = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
_FIRST_BACK, _SECOND_BACK = (np.uint32(pow(int(factor), -1, 2**32)) for factor in (_FIRST, _SECOND))


def cluster_stream(
    source: Any,
    rows: int | tuple[int, int],
    *,
    hashes: int = 8,
    user: str = "user_id",
    item: str = "item_id",
    num_users: int | None = None,
    num_items: int | None = None,
    seed: int = 0,
    **settings: Any,
) -> Clusters:
    """Group users and items into an exact number of rows, from interactions that need not fit into memory.

    `sample_neighbours` reads the interactions once, and `cluster` groups the edges that it keeps. Ids with similar
    neighbours keep the same ones of them, so that they stay near each other.

    Args:
        source: the interactions, as in `sample_neighbours`.
        rows: the number of rows, as in `cluster`.
        hashes: the number of neighbours that each id keeps at most.
        user: the column of user ids in files.
        item: the column of item ids in files.
        num_users: the number of users; by default one more than the largest id.
        num_items: the number of items; by default one more than the largest id.
        seed: the seed of the hashes and of the clustering.
        settings: further settings of `cluster`, such as `algorithm`.

    Raises:
        ValueError: the errors of `sample_neighbours` and `cluster`.

    Example:
        >>> import numpy as np
        >>> from embcomp.graph import cluster_stream
        >>> blocks = [(np.array([0, 0, 1]), np.array([0, 1, 0])), (np.array([1, 2, 2]), np.array([1, 2, 3]))]
        >>> clusters = cluster_stream(blocks, rows=4)
        >>> clusters.users.assignment(), clusters.items.assignment()
        (tensor([0, 0, 1]), tensor([0, 0, 1, 1]))
    """
    columns: dict[str, Any] = {"user": user, "item": item, "num_users": num_users, "num_items": num_items}
    return cluster(sample_neighbours(source, hashes, seed=seed, **columns), rows, seed=seed, **settings)


def sample_neighbours(
    source: Any,
    hashes: int = 8,
    *,
    user: str = "user_id",
    item: str = "item_id",
    num_users: int | None = None,
    num_items: int | None = None,
    seed: int = 0,
) -> Edges:
    """Keep for each id the neighbours with the smallest hashes, in one pass over the interactions.

    For each of `hashes` random orders of the items, a user keeps the first of the own items (minhash, Broder 1997); so
    do items with their users. Two users keep the same item in an order with probability J = |A and B| / |A or B|, A and
    B their items. Memory is 4 * `hashes` bytes for each id while it reads, and some 50 for each kept neighbour at the
    end, whatever the number of interactions; repeated ones change nothing.

    Args:
        source: a parquet path, folder or glob, or several of these; a pair of arrays (users, items); or an iterable of
            such pairs, which are read one after the other.
        hashes: the number of orders, 1 to 64.
        user: the column of user ids in files, integers in [0, 2^31).
        item: the column of item ids in files, integers in [0, 2^31).
        num_users: the number of users; by default one more than the largest id.
        num_items: the number of items; by default one more than the largest id.
        seed: the seed of the orders.

    Returns:
        The kept edges, without weights, at most `hashes` for each id and those by which its neighbours keep it.

    Raises:
        ValueError: ids are negative, missing, not integers, or too large; a column is missing; a file is damaged; a
            block is not a pair of arrays of one length; or `hashes` or `seed` is out of range.

    Example:
        >>> import numpy as np
        >>> from embcomp.graph import sample_neighbours
        >>> users, items = np.repeat(np.arange(10), 100), np.tile(np.arange(100), 10)  # each user with each item
        >>> edges = sample_neighbours((users, items), hashes=2)
        >>> len(edges) <= 2 * 10 + 2 * 100
        True
    """
    if isinstance(hashes, bool) or not isinstance(hashes, int) or not 1 <= hashes <= MOST_HASHES:
        raise ValueError(f"hashes must be an integer from 1 to {MOST_HASHES}, got {hashes!r}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    sides = _Smallest("user", hashes, seed, num_users), _Smallest("item", hashes, seed, num_items)
    for users, items in _blocks(source, user, item):
        checked = sides[0].checked(users), sides[1].checked(items)
        if checked[0].size != checked[1].size:
            raise ValueError(f"a block has {checked[0].size} users for {checked[1].size} items; give pairs")
        sides[0].update(*checked)
        sides[1].update(*checked[::-1])
    counts = sides[0].count, sides[1].count
    (users, of_users), (items, of_items) = (side.kept() for side in sides)
    pairs = np.concatenate([users * counts[1] + of_users, of_items * counts[1] + items])
    pairs = np.unique(pairs)
    kept = (pairs // max(1, counts[1])).astype(np.int32), (pairs % max(1, counts[1])).astype(np.int32)
    return Edges(*kept, None, *counts)


class _Smallest:
    """The smallest hash of each id's neighbours in every order.

    Attributes:
        count: the number of ids.
        table: the hashes, uint32 [ids or more, orders].
    """

    def __init__(self, name: str, hashes: int, seed: int, given: int | None) -> None:
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= MAX_IDS):
            raise ValueError(f"num_{name}s must be an integer in [0, 2^31], got {given!r}")
        self.name, self.given, self.count = name, given, given or 0
        self.table = np.full((self.count, hashes), _EMPTY)
        keys = [hash_key(seed, f"neighbours of {name}s", order) & 0xFFFFFFFF for order in range(hashes)]
        # No id has the hash that means "none": the number with that hash is 2^31 or larger.
        never = int(_unmixed(np.array([_EMPTY]))[0])
        self.keys = np.array([key & 0x7FFFFFFF | ~never & 0x80000000 for key in keys], dtype=np.uint32)

    def checked(self, ids: Any) -> np.ndarray:
        """Return the ids of a block, int64, and make room for them."""
        ids = np.asarray(ids)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(f"{self.name} ids must be integers in one dimension, got {ids.dtype} {list(ids.shape)}")
        if not ids.size:
            return ids.astype(np.int64)
        least, most = int(ids.min()), int(ids.max())
        if least < 0 or most >= MAX_IDS:
            raise ValueError(f"{self.name} ids must lie in [0, 2^31), got {least if least < 0 else most}; number them")
        if self.given is not None and most >= self.given:
            raise ValueError(f"num_{self.name}s={self.given}, but there is an id {most}")
        self.count = max(self.count, most + 1)
        if self.count > len(self.table):
            room = np.full((max(self.count, len(self.table) * 5 // 4) - len(self.table), len(self.keys)), _EMPTY)
            self.table = np.concatenate([self.table, room])
        return np.ascontiguousarray(ids, dtype=np.int64)

    def update(self, ids: np.ndarray, neighbours: np.ndarray) -> None:
        """Take the neighbours of ids into account, int64 [n] each, both checked."""
        lib = native.library()
        if lib is None:
            keep_smallest_reference(ids, neighbours, self.keys, self.table)
            return
        lib.keep_smallest(
            ctypes.c_size_t(ids.size), _pointer(ids), _pointer(neighbours), ctypes.c_size_t(self.keys.size),
            _pointer(self.keys), _pointer(self.table),
        )  # fmt: skip

    def kept(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids and the neighbours that they keep, int64 [n] each."""
        ids, order = np.nonzero(self.table[: self.count] != _EMPTY)
        return ids, (_unmixed(self.table[ids, order]) ^ self.keys[order]).astype(np.int64)


def keep_smallest_reference(ids: np.ndarray, neighbours: np.ndarray, keys: np.ndarray, table: np.ndarray) -> None:
    """Update the smallest hashes in NumPy: the definition, which is used without a compiler.

    Args:
        ids: the ids, int64 [n].
        neighbours: their neighbours, int64 [n], below 2^31.
        keys: the key of each order, uint32 [orders].
        table: the smallest hashes, uint32 [ids, orders], updated in place.
    """
    for order, key in enumerate(keys):
        np.minimum.at(table[:, order], ids, _mixed(neighbours.astype(np.uint32) ^ key))


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Permute the 32-bit numbers at random, as embcomp/native/graph.cpp does."""
    numbers = (numbers ^ (numbers >> 16)) * _FIRST
    numbers = (numbers ^ (numbers >> 15)) * _SECOND
    return numbers ^ (numbers >> 16)


def _unmixed(numbers: np.ndarray) -> np.ndarray:
    """Invert `_mixed`."""
    numbers = (numbers ^ (numbers >> 16)) * _SECOND_BACK
    numbers = (numbers ^ (numbers >> 15) ^ (numbers >> 30)) * _FIRST_BACK
    return numbers ^ (numbers >> 16)


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _blocks(source: Any, user: str, item: str) -> Iterator[tuple[Any, Any]]:
    """Yield pairs of arrays (users, items)."""
    paths = [source] if isinstance(source, str | os.PathLike) else source
    if isinstance(paths, Sequence) and paths and all(isinstance(path, str | os.PathLike) for path in paths):
        yield from _blocks_of_files(paths, user, item)
        return
    pairs = [source] if isinstance(source, tuple) else source
    if not isinstance(pairs, Iterable):
        raise ValueError(
            f"expected parquet paths, two arrays or an iterable of pairs of arrays, got {type(source).__name__}"
        )
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ValueError(f"expected pairs of arrays (users, items), got {type(pair).__name__}")
        yield pair


def _blocks_of_files(paths: Sequence[Any], user: str, item: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    import pyarrow.parquet as pq

    files = parquet_files(paths)
    with readable(files):
        for path in files:
            with pq.ParquetFile(path) as file:
                for column in (user, item):
                    if column not in file.schema_arrow.names:
                        raise ValueError(
                            f"{path}: no column {column!r}; there are {', '.join(file.schema_arrow.names)}"
                        )
                for batch in file.iter_batches(_ROWS, columns=[user, item]):
                    for column in (user, item):
                        if missing := batch[column].null_count:
                            raise ValueError(f"{path}: {missing} values of {column!r} are missing")
                    yield batch[user].to_numpy(), batch[item].to_numpy()
