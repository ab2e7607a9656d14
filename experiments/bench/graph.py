"""`python -m experiments bench graph`: clustering, growth and look-up of maps, each against a reference.

The graph is Gowalla if `EMBCOMP_DATA` holds it, else a power-law graph of its size. `edges` > 0 adds a synthetic graph
with this number of edges (`-o edges=10000000`): its time is compared with one Louvain of scikit-network and with three
minutes, its peak memory with 100 bytes per edge.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from scipy.sparse import csr_matrix
from sknetwork.clustering import Louvain

from embcomp.graph import ClusterMap, Clusters, Edges, cluster, interactions
from embcomp.graph.cluster_map import look_up
from embcomp.graph.partition import problem
from experiments.bench import BenchRow
from experiments.bench.timing import paired

IDS, LOOKUPS, RESOLUTION = 1_000_000, 26 * 8192, 200.0


def run(console: Console, *, rounds: int = 3, rows: int = 12_000, edges: int = 0) -> list[BenchRow]:
    """Run all comparisons. `rows` is the budget on Gowalla, `rounds` the number of timings of each pair."""
    graph = gowalla(console)
    results = [
        *_clustering(console, graph, rows, rounds),
        *_growth(console, graph, rows, rounds),
        *_look_up(rounds * 20),
    ]
    if edges:
        results += _large(console, edges)
    return results


def gowalla(console: Console) -> Edges:
    """Return the training edges of Gowalla, or a power-law graph of its size."""
    path = Path(os.environ.get("EMBCOMP_DATA", "."), "gowalla", "interactions.parquet")
    if path.exists():
        import polars as pl

        graph = interactions(pl.scan_parquet(path).filter(pl.col("split") != "test"))
    else:
        graph = power_law(29_858, 40_981, 810_128)
    console.log(f"{'Gowalla' if path.exists() else 'a power-law graph'}: {len(graph):,} edges")
    return graph


def power_law(users: int, items: int, edges: int, seed: int = 0, groups: int = 2000, within: float = 0.7) -> Edges:
    """Draw edges with Zipf degrees; a share `within` stays in the user's group of items. Repeated pairs count once."""
    rng = np.random.default_rng(seed)

    def zipf(size: int) -> np.ndarray:
        cumulative = np.cumsum(np.arange(1, size + 1) ** -0.8)
        return rng.permutation(size)[np.searchsorted(cumulative, rng.random(edges) * cumulative[-1])]

    user, item = zipf(users), zipf(items)
    near = rng.random(edges) < within
    item[near] = (item[near] // groups * groups + user[near] % groups) % items
    return interactions((user, item), num_users=users, num_items=items)


def _sknetwork(graph: Edges, resolution: float = RESOLUTION) -> np.ndarray:
    matrix = csr_matrix((np.ones(len(graph)), (graph.users, graph.items)), shape=(graph.num_users, graph.num_items))
    model = Louvain(resolution=resolution, modularity="dugue", random_state=0)
    model.fit(matrix, force_bipartite=True)
    assert model.labels_row_ is not None
    assert model.labels_col_ is not None
    return np.concatenate([model.labels_row_[np.unique(graph.users)], model.labels_col_[np.unique(graph.items)]])


def _clustering(console: Console, graph: Edges, rows: int, rounds: int) -> list[BenchRow]:
    name = "one scikit-network Louvain at one resolution"
    candidates = {name: lambda: _sknetwork(graph), f"cluster into exactly {rows} rows": lambda: cluster(graph, rows)}
    timed = paired(candidates, against=name, rounds=rounds, warmup=1)
    whole = problem(graph, "bipartite_modularity")
    labels, split = _sknetwork(graph), whole.users.size
    theirs = whole.quality(labels, RESOLUTION)
    same = (np.unique(labels[:split]).size, np.unique(labels[split:]).size)
    ours = quality(graph, cluster(graph, same), RESOLUTION)
    console.log(f"modularity at {same} rows, resolution {RESOLUTION:g}: {ours:.4f}, scikit-network {theirs:.4f}")
    ratio = ours / theirs
    return [*timed, BenchRow("modularity in as many rows", ratio, ratio, ratio, "scikit-network Louvain")]


def quality(graph: Edges, clusters: Clusters, resolution: float) -> float:
    """Return the bipartite modularity of clusters in all edges of a graph."""
    whole = problem(graph, "bipartite_modularity")
    users, items = clusters.users, clusters.items
    labels = torch.cat([users.labels[users.assignment()[whole.users]], items.labels[items.assignment()[whole.items]]])
    return whole.quality(labels.numpy(), resolution)


def _growth(console: Console, graph: Edges, rows: int, rounds: int) -> list[BenchRow]:
    new = np.random.default_rng(0).random(graph.num_items) < 0.01
    is_new = new[graph.items]
    early, late = graph.where(~is_new), graph.where(is_new)
    clusters = cluster(early, rows)
    placed = clusters.extend(late).items.assignment()[torch.from_numpy(np.unique(late.items)).long()]
    console.log(f"{np.unique(late.items).size} new items, {int((placed >= 0).sum())} placed")
    name = f"cluster into exactly {rows} rows"
    candidates = {name: lambda: cluster(early, rows), "extend by 1 % new items": lambda: clusters.extend(late)}
    return paired(candidates, against=name, rounds=rounds, warmup=1)


def _look_up(rounds: int) -> list[BenchRow]:
    rows = torch.randint(12_000, (IDS,), generator=torch.Generator().manual_seed(0))
    plain, packed = rows.int(), ClusterMap.of(rows, 12_000)
    ids = torch.randint(IDS, (LOOKUPS,), generator=torch.Generator().manual_seed(1))
    name = f"int32 gather of {LOOKUPS} ids"
    candidates = {
        name: lambda: plain.index_select(0, ids),
        "packed map, as many ids": lambda: look_up(packed.words, packed.bits, IDS, packed.own_rows, ids, complete=True),
        "packed map, any id may be unseen": lambda: packed.row_of(ids),
    }
    return paired(candidates, against=name, rounds=rounds)


def _large(console: Console, edges: int) -> list[BenchRow]:
    graph = power_law(edges // 10, edges // 20, edges)
    console.log(f"{len(graph):,} distinct edges of {edges:,}")
    begin = time.perf_counter()
    with peak() as most:
        clusters = cluster(graph, edges // 50, progress=True)
    ours = time.perf_counter() - begin
    per_edge = most[0] / len(graph)
    console.log(
        f"{clusters.users.rows + clusters.items.rows} rows in {ours:.0f} s, {per_edge:.0f} bytes per edge at peak"
    )
    begin = time.perf_counter()
    _sknetwork(graph)
    ratio = ours / (time.perf_counter() - begin)
    name = f"cluster {len(graph)} edges into exactly {edges // 50} rows"
    against = {"one scikit-network Louvain at one resolution": ratio, "3 minutes": ours / 180}
    rows = [BenchRow(name, value, value, value, other) for other, value in against.items()]
    share = per_edge / 100
    return [*rows, BenchRow("memory at its peak, per edge", share, share, share, "100 bytes")]


@contextmanager
def peak() -> Iterator[list[float]]:
    """Measure the largest growth of the process's memory inside the block, in bytes."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    start, most, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], resident() - start)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield most
    finally:
        done.set()
        watcher.join()
