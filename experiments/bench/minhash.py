"""`python -m experiments bench minhash`: clusters of interactions that stream from files, and what they lose.

Users and items are drawn with Zipf degrees, in groups, and written to parquet files before anything is measured. Times
are of the processor, in seconds; memory is the growth of the process at its peak. `-o edges=100000000` takes some
minutes and 1 GB of disk.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from embcomp.graph import Edges, cluster, sample_neighbours
from experiments.bench import BenchRow
from experiments.bench.graph import gowalla, peak, quality

_BLOCK = 10_000_000  # interactions of a file
_GROUPS, _WITHIN = 500, 0.7  # of users and items, and the share of interactions inside them


def run(
    console: Console,
    *,
    edges: int = 10_000_000,
    users: int = 0,
    items: int = 0,
    hashes: int = 8,
    rows: int = 0,
    algorithm: str = "leiden",
    compare: bool = True,
) -> list[BenchRow]:
    """Measure the pass and the clustering of what it keeps; `compare` adds the quality on Gowalla.

    By default there are 100 interactions for each user and 1000 for each item, and a row for 10 of them.
    """
    users, items = users or max(1, edges // 100), items or max(1, edges // 1000)
    rows = rows or max(2, (users + items) // 10)
    with tempfile.TemporaryDirectory() as folder:
        for number, block in enumerate(_blocks(edges, users, items)):
            pq.write_table(block, Path(folder, f"{number:05}.parquet"))
        console.log(f"{edges:,} interactions of {users:,} users and {items:,} items")
        kept, seconds, nbytes = _measured(lambda: sample_neighbours(folder, hashes))
    name = f"{edges:,} interactions, {users:,} users, {items:,} items, {hashes} hashes"
    results = [_row(f"{name}: one pass", seconds, "1 processor second")]
    results.append(_row(f"{name}: memory of the pass at its peak", nbytes / 1e6, "1 MB"))
    results.append(_row(f"{name}: edges that are kept", len(kept) / edges, "all interactions"))
    _, seconds, nbytes = _measured(lambda: cluster(kept, rows, algorithm=algorithm))  # pyright: ignore
    results.append(_row(f"{name}: clustering into {rows:,} rows by {algorithm}", seconds, "1 processor second"))
    results.append(_row(f"{name}: memory of the clustering at its peak", nbytes / 1e6, "1 MB"))
    return results + (_compared(console, algorithm) if compare else [])


def _measured(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what a function returns, its processor time and the memory at its peak."""
    begin = time.process_time()
    with peak() as most:
        result = call()
    return result, time.process_time() - begin, most[0]


def _row(name: str, value: float, against: str) -> BenchRow:
    return BenchRow(name, value, value, value, against)


def _blocks(edges: int, users: int, items: int) -> Iterator[pa.Table]:
    """Draw interactions: degrees of rank r in proportion to r^-0.8, and items mostly of the user's group."""
    rng = np.random.default_rng(0)

    def drawn(size: int, number: int) -> np.ndarray:
        return np.minimum((size * rng.random(number) ** 5).astype(np.int64), size - 1)

    for first in range(0, edges, _BLOCK):
        number = min(_BLOCK, edges - first)
        user, item = drawn(users, number), drawn(items, number)
        near = rng.random(number) < _WITHIN
        item[near] = np.minimum(item[near] // _GROUPS * _GROUPS + user[near] % _GROUPS, items - 1)
        yield pa.table({"user_id": user.astype(np.int32), "item_id": item.astype(np.int32)})


def _compared(console: Console, algorithm: str, rows: tuple[int, int] = (6000, 6000)) -> list[BenchRow]:
    """Compare clusters of kept edges with those of all edges: modularity in all edges, at equal rows."""
    graph: Edges = gowalla(console)
    whole = cluster(graph, rows, algorithm=algorithm)  # pyright: ignore
    best, results = quality(graph, whole, whole.resolution), []
    for hashes in (4, 8, 16, 32):
        kept = sample_neighbours((graph.users, graph.items), hashes)
        share = quality(graph, cluster(kept, rows, algorithm=algorithm), whole.resolution) / best  # pyright: ignore
        name = f"{hashes} hashes, {len(kept) / len(graph):.0%} of {len(graph):,} edges, {sum(rows):,} rows: modularity"
        results.append(_row(name, share, "clusters of all edges"))
    return results
