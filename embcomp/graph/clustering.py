"""`cluster`: the clustering of the users and items of a graph into an exact number of rows."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, get_args

import numpy as np
import torch

from embcomp import artifact
from embcomp.graph.cluster_map import ClusterMap, Side
from embcomp.graph.edges import Edges
from embcomp.graph.files import read_file
from embcomp.graph.growth import coherence
from embcomp.graph.networkx_backend import networkx_partition
from embcomp.graph.partition import Algorithm, Objective, Problem, label_propagation, leiden, louvain, problem
from embcomp.graph.row_budget import count_rows, to_rows

SEARCH_STEPS = 12
CLOSE_ENOUGH = 0.02
_LEIDEN_MERGES = 1.04  # Leiden ends with about 4 % fewer clusters than the Louvain labels that it starts from


@dataclass(frozen=True, eq=False)
class Clusters:
    """The maps of users and items from one clustering.

    Attributes:
        users: the map of user ids.
        items: the map of item ids.
        quality: the objective of the final clusters.
        resolution: the resolution of the clustering, at which `quality` is measured.
    """

    users: ClusterMap
    items: ClusterMap
    quality: float
    resolution: float

    def extend(self, new_edges: Edges) -> Clusters:
        """Place new users and new items by their neighbours' clusters; see `ClusterMap.extend`.

        New ids that interact only with new ids are placed once one of their neighbours is placed.
        """
        users, items = self.users, self.items
        for _ in range(2):
            users, items = users.extend(new_edges, items), items.extend(new_edges, users)
        return replace(self, users=users, items=items)

    def with_own_rows(self, users: Sequence[int] = (), items: Sequence[int] = ()) -> Clusters:
        """Return the maps with rows of their own for these ids; see `ClusterMap.with_own_rows`."""
        return replace(self, users=self.users.with_own_rows(users), items=self.items.with_own_rows(items))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `users.map`, `items.map` and `quality` into the folder, which is created if needed."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        about = {"quality": self.quality, "resolution": self.resolution, "clustering": self.users.clustering}
        artifact.save(Path(folder, "quality"), "quality of clusters", about, {})
        self.users.save(Path(folder, "users.map"))
        self.items.save(Path(folder, "items.map"))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read the files that `save` wrote.

        Raises:
            ValueError: a file is truncated or edited, or the files are of different clusterings.
        """
        users, items = (ClusterMap.load(Path(folder, f"{side}.map")) for side in ("users", "items"))
        about, _ = read_file(Path(folder, "quality"), "quality of clusters")
        if not users.clustering == items.clustering == about["clustering"]:
            raise ValueError(
                f"{folder}: users.map, items.map and quality are of different clusterings; save them together"
            )
        return cls(users, items, about["quality"], about["resolution"])


def cluster(
    edges: Edges,
    rows: int | tuple[int, int],
    *,
    objective: Objective = "bipartite_modularity",
    algorithm: Algorithm = "leiden",
    backend: str = "igraph",
    unseen_rows: int | tuple[int, int] = 0,
    seed: int = 0,
    progress: bool | None = None,
) -> Clusters:
    """Group users and items so that those who click together share rows, in exactly `rows` rows.

    The resolution is searched until the number of rows is close; then clusters are merged, or single ids leave their
    clusters, where this costs the least quality. With m the summed weight of the edges, d the degrees, and c the
    clusters:

    | objective | quality |
    |---|---|
    | "bipartite_modularity" (Barber; GraphHash, arXiv 2412.17245) | 1/m sum_ui (B_ui - r d_u d_i / m) [c_u = c_i] |
    | "modularity" (Newman) | sum_c (L_c / m - r (d_c / 2m)^2) |
    | "cpm" (constant Potts model) | 1/m sum_c (L_c - r n_c^2 / 2) |
    | "balanced" (after BACO, arXiv 2604.18351) | 1/m sum_ui (B_ui - r d_u / items) [c_u = c_i] |

    Args:
        edges: the edges, from `interactions`. Ids without an edge are in no cluster: they are unseen.
        rows: the number of rows of both tables together, split by the graph (a cluster with users and items is a row in
            each table); or (rows for users, rows for items).
        objective: the objective to maximise, see above.
        algorithm: "leiden" (igraph, started from Louvain's result), "louvain", or "label_propagation" (five passes of
            single moves, as in BACO: faster, but of lower quality at the same number of rows).
        backend: the library that clusters at one resolution. "igraph": embcomp's own moves and igraph's Leiden.
            "networkx", or the name of a back end that networkx dispatches to: their Louvain (and Leiden, if the back
            end has it) for the two modularities. networkx itself is plain Python and far slower. The number of rows is
            exact with each.
        unseen_rows: the number of rows reserved for unseen ids: (users, items), or one number for each of them.
        seed: the seed of the order in which vertices move; equal seeds give equal clusters.
        progress: True to show progress on the terminal; by default if stderr is a terminal.

    Raises:
        ValueError: there are no edges; there are fewer rows than one for each table, or more than ids with an edge; the
            seed is negative; or the back end does not support the objective or algorithm.

    Example:
        >>> import numpy as np
        >>> from embcomp.graph import cluster, interactions
        >>> edges = interactions((np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 2, 3])))
        >>> clusters = cluster(edges, rows=4)
        >>> clusters.users.assignment(), clusters.items.assignment()
        (tensor([0, 0, 1]), tensor([0, 0, 1, 1]))
    """
    if algorithm not in get_args(Algorithm):
        raise ValueError(f"algorithm must be one of {', '.join(get_args(Algorithm))}, got {algorithm!r}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if len(edges) == 0:
        raise ValueError("there are no interactions to cluster (an empty graph; did a label filter drop all?)")
    kept = (unseen_rows, unseen_rows) if isinstance(unseen_rows, int) else unseen_rows
    with _reporting(progress) as say:
        say(f"{len(edges):,} edges")
        graph = problem(edges, objective)
        wanted = _checked(rows, kept, graph)
        if backend == "igraph":
            partition = label_propagation if algorithm == "label_propagation" else louvain
        else:
            partition = networkx_partition(graph, objective, algorithm, backend)
        polished = algorithm == "leiden" and backend == "igraph"
        labels, resolution = _search(graph, wanted, partition, polished, seed, say)
        labels = to_rows(graph, labels, graph.scale * resolution, wanted)
        quality = graph.quality(labels, resolution)
        say(f"quality {quality:.4f}")
        users, items = _maps(edges, graph, labels, kept)
    return Clusters(users, items, float(quality), float(resolution))


def _checked(rows: int | tuple[int, int], kept: tuple[int, int], graph: Problem) -> int | tuple[int, int]:
    """The number of rows left for clusters. Raise ValueError if it cannot be reached."""
    if (isinstance(rows, tuple) and len(rows) != 2) or len(kept) != 2:
        raise ValueError(f"rows must be an integer or a pair of integers, got {rows!r} (unseen_rows {kept})")
    for given in (*(rows if isinstance(rows, tuple) else (rows,)), *kept):
        if isinstance(given, bool) or not isinstance(given, int | np.integer):
            raise ValueError(f"rows must be an integer or a pair of integers, got {rows!r} (unseen_rows {kept})")
    sizes = (graph.users.size, graph.items.size)
    if isinstance(rows, tuple):
        for side, asked, spare, ids in zip(("users", "items"), rows, kept, sizes, strict=True):
            if not 1 <= asked - spare <= ids or spare < 0:
                raise ValueError(
                    f"rows={asked} for {side} (of which {spare} kept for unseen ids): clusters can have 1 to {ids} "
                    f"rows, as many {side} have interactions"
                )
        return int(rows[0]) - kept[0], int(rows[1]) - kept[1]
    left = int(rows) - sum(kept)
    if not 2 <= left <= sum(sizes) or min(kept) < 0:
        raise ValueError(
            f"rows={rows} (of which {sum(kept)} kept for unseen ids): users and items need one row each at least, and "
            f"can have {sum(sizes)} at most, as many ids have interactions; give those that remain to unseen_rows"
        )
    return left


Partition = Callable[[Problem, float, int], np.ndarray]
"""A function (problem, resolution, seed) -> labels int32 [n]."""


def _search(
    graph: Problem,
    wanted: int | tuple[int, int],
    partition: Partition,
    polished: bool,
    seed: int,
    say: Callable[[str], None],
) -> tuple[np.ndarray, float]:
    """Search labels with nearly the wanted rows, and their resolution; if `polished`, igraph's Leiden improves them."""
    target = sum(wanted) if isinstance(wanted, tuple) else wanted
    ids = graph.out.size
    if target == ids:
        return np.arange(ids, dtype=np.int32), 1.0
    aim = min(target * (_LEIDEN_MERGES if polished else 1.0), ids - 1)
    volume = graph.out.sum() * graph.inn.sum() * graph.scale
    resolution = target / 50 * graph.total / volume  # of the right size on the graphs that we have seen
    tried: list[tuple[float, float]] = []  # log resolution, log rows
    best: tuple[float, np.ndarray, float] | None = None
    for _ in range(SEARCH_STEPS):
        labels = partition(graph, resolution, seed)
        rows = sum(count_rows(graph, labels))
        say(f"resolution {resolution:.4g}: {rows:,} rows, {target:,} wanted")
        off = abs(math.log(rows / aim))
        if best is None or off < best[0]:
            best = off, labels, resolution
        if off < CLOSE_ENOUGH:
            break
        tried.append((math.log(resolution), math.log(rows)))
        step = _next(tried, math.log(aim))
        if step is None:
            break
        resolution = math.exp(step)
    assert best is not None
    _, labels, resolution = best
    if polished:
        say(f"Leiden at resolution {resolution:.4g}")
        graph.forget_graph()  # igraph makes its own, and memory peaks there
        labels = leiden(graph, resolution, seed, labels)
    return labels, resolution


def _next(tried: list[tuple[float, float]], aim: float) -> float | None:
    """The next log resolution to try, for log rows of `aim`; None if there is none left to try."""
    below = max((p for p in tried if p[1] < aim), default=None)
    above = min((p for p in tried if p[1] >= aim), default=None)
    if below and above:
        if not below[0] < above[0] or above[0] - below[0] < 1e-4:
            return None  # rows jump here: the margin does the rest
        share = (aim - below[1]) / (above[1] - below[1])
        share = min(max(share, 0.05), 0.95) if len(tried) < 6 else 0.5
        return below[0] + share * (above[0] - below[0])
    x, y = below or above  # pyright: ignore[reportGeneralTypeIssues]
    slope = 0.8
    if len(tried) > 1:
        (x0, y0), (x1, y1) = tried[-2:]
        slope = (y1 - y0) / (x1 - x0) if x1 != x0 else slope
    reach = 1.5 * len(tried)
    step = (aim - y) / min(max(slope, 0.3), 3.0)
    if abs(x) > 60:
        return None  # no resolution gives so few (components do not merge) or so many rows
    return x + min(max(step, -reach), reach) * (1.02 if len(tried) > 1 else 1.0)


def _maps(edges: Edges, graph: Problem, labels: np.ndarray, kept: tuple[int, int]) -> tuple[ClusterMap, ClusterMap]:
    name = hashlib.sha256(labels.tobytes()).hexdigest()[:16]
    split = graph.users.size
    maps = []
    parts: list[tuple[Side, np.ndarray, np.ndarray, int]] = [
        ("users", graph.users, labels[:split], kept[0]),
        ("items", graph.items, labels[split:], kept[1]),
    ]
    for side, ids, mine, spare in parts:
        label_of_row, rows_of = np.unique(mine, return_inverse=True)
        row_of_id = np.full(edges.num_ids(side), -1, dtype=np.int64)
        row_of_id[ids] = rows_of
        more = {"side": side, "coherence": coherence(edges, side, row_of_id), "clustering": name}
        more["labels"] = torch.from_numpy(label_of_row.astype(np.int32))
        maps.append(ClusterMap.of(torch.from_numpy(row_of_id), label_of_row.size + spare, spare, **more))
    return maps[0], maps[1]


@contextmanager
def _reporting(progress: bool | None) -> Iterator[Callable[[str], None]]:
    """Give a function that shows a line of status."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda text: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("clustering") as status:
        yield lambda text: (console.log(text), status.update(f"clustering: {text}"))[0]
