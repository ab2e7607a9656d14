"""Random walks between ids and their neighbours, over the rows of a table, for `extend` and mixtures."""

import ctypes
from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_array

from embcomp.ops import native

_KEPT = 64  # rows of a neighbour that count
_BLOCK = 1 << 22  # products at a time


def neighbourhoods(
    edges: csr_array, seen: csr_array, row_of_id: np.ndarray, row_of_neighbour: np.ndarray, rows: int
) -> Iterator[tuple[int, csr_array]]:
    """Yield the share of each row in each id's neighbourhood:  P Z + P R Y.

    P is the random walk along `edges`, R the walk back along `seen`, Y the row of each id and Z that of each neighbour:
    half of the weight is that of the neighbours, half that of the ids which these interact with.

    Args:
        edges: the weights of the edges of the wanted ids, [ids, neighbours].
        seen: the weights of all edges, [all ids, neighbours].
        row_of_id: the row of each id, int64 [all ids], -1 for none.
        row_of_neighbour: the row of each neighbour, int64 [neighbours], -1 for none.
        rows: the number of rows.

    Yields:
        (first id, weights [some ids, rows]), the ids in order.
    """
    back = walk(seen.T.tocsr()) @ one_hot(row_of_id, rows)
    near, there = largest(csr_array(back + one_hot(row_of_neighbour, rows)), _KEPT), walk(edges)
    for start, stop in blocks(np.cumsum(counts(there)) * _KEPT, _BLOCK):
        yield start, csr_array(there[start:stop] @ near)


def one_hot(rows: np.ndarray, width: int) -> csr_array:
    """Return the matrix with a 1 at (i, rows[i]), and a row of zeros if that is -1."""
    known = np.flatnonzero(rows >= 0)
    return csr_array((np.ones(known.size), (known, rows[known])), shape=(rows.size, width))


def walk(matrix: csr_array) -> csr_array:
    """Divide the rows of a matrix by their sums."""
    sums = np.bincount(row_of_entry(matrix), matrix.data, minlength=counts(matrix).size)
    return csr_array((matrix.data / sums[row_of_entry(matrix)], matrix.indices, matrix.indptr), shape=matrix.shape)


def counts(matrix: csr_array) -> np.ndarray:
    """Return the number of entries of each row."""
    return np.diff(np.asarray(matrix.indptr))


def row_of_entry(matrix: csr_array) -> np.ndarray:
    """Return the row of each entry."""
    return np.repeat(np.arange(counts(matrix).size), counts(matrix))


def largest(matrix: csr_array, k: int) -> csr_array:
    """Keep the k largest entries of each row, largest first, ties by column."""
    lib = native.library()
    rows = counts(matrix).size
    if lib is None or int(np.max(np.asarray(matrix.indices), initial=0)) >= 2**31:
        return largest_reference(matrix, k)
    starts = np.ascontiguousarray(matrix.indptr, dtype=np.int64)
    columns = np.ascontiguousarray(matrix.indices, dtype=np.int32)
    values = np.ascontiguousarray(matrix.data, dtype=np.float64)
    ends = np.append(0, np.cumsum(np.minimum(counts(matrix), k)))
    kept, data = np.empty(ends[-1], dtype=np.int32), np.empty(ends[-1])
    given, out = (starts, columns, values), (kept, data)
    native.within_memory(
        lib.largest_of_rows,
        ctypes.c_size_t(rows),
        *(ctypes.c_void_p(array.ctypes.data) for array in given),
        ctypes.c_size_t(k),
        *(ctypes.c_void_p(array.ctypes.data) for array in out),
    )
    return csr_array((data, kept, ends), shape=matrix.shape)


def largest_reference(matrix: csr_array, k: int) -> csr_array:
    """Compute `largest` in NumPy: its definition, which is used without a compiler."""
    row = row_of_entry(matrix)
    data, columns = np.asarray(matrix.data), np.asarray(matrix.indices)
    order = np.lexsort((columns, np.negative(data), row))
    starts_of: np.ndarray = np.asarray(matrix.indptr, dtype=np.int64)[row]
    rank = np.arange(order.size) - starts_of
    kept = order[rank < k]
    starts = np.append(0, np.cumsum(np.minimum(counts(matrix), k)))
    return csr_array((data[kept], columns[kept], starts), shape=matrix.shape)


def blocks(cumulative: np.ndarray, size: int) -> list[tuple[int, int]]:
    """Split rows into ranges whose work is about `size`."""
    if not cumulative.size:
        return []
    cuts = np.searchsorted(cumulative, np.arange(size, cumulative[-1] + size, size), side="left") + 1
    cuts = np.unique(np.clip(np.append(0, cuts), 0, cumulative.size))
    if cuts[-1] < cumulative.size:
        cuts = np.append(cuts, cumulative.size)
    return list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))
