"""Other back ends: Louvain and Leiden of networkx, or of a library that it dispatches to."""

from collections.abc import Callable

import numpy as np

from embcomp.extras import install
from embcomp.graph.partition import Algorithm, Objective, Problem, numbered

# Directed modularity with all edges from users to items is Barber's; other objectives have volumes of their own.
_DIRECTED: dict[Objective, bool] = {"bipartite_modularity": True, "modularity": False}


def networkx_partition(
    graph: Problem, objective: Objective, algorithm: Algorithm, backend: str
) -> Callable[[Problem, float, int], np.ndarray]:
    """Return a function (problem, resolution, seed) -> labels int32 [n], like those in `embcomp.graph.partition`.

    Args:
        graph: the problem of all calls, which is converted to a networkx graph once.
        objective: "bipartite_modularity" or "modularity".
        algorithm: "louvain", or "leiden" if the back end has it.
        backend: "networkx", or the name of a back end that networkx dispatches to.

    Raises:
        ValueError: the back end cannot maximise this objective, or has no such algorithm.
    """
    try:
        import networkx as nx
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"backend={backend!r}: {error}: {install('graph')}") from error
    if objective not in _DIRECTED:
        raise ValueError(
            f"backend={backend!r} maximises modularity, whose volumes are the degrees, and cannot serve "
            f"objective={objective!r}: choose one of {', '.join(_DIRECTED)}, or backend='igraph'"
        )
    if algorithm == "label_propagation":
        raise ValueError(
            f"backend={backend!r}: label propagation of networkx has no objective and no resolution, so it cannot "
            "give a number of rows: choose algorithm='louvain', or backend='igraph'"
        )
    nx_graph = nx.DiGraph() if _DIRECTED[objective] else nx.Graph()
    nx_graph.add_nodes_from(range(graph.out.size))
    weights = np.ones(graph.sources.size) if graph.weights is None else graph.weights
    nx_graph.add_weighted_edges_from(zip(graph.sources.tolist(), graph.targets.tolist(), weights.tolist(), strict=True))
    communities = nx.community.louvain_communities if algorithm == "louvain" else nx.community.leiden_communities
    elsewhere = {} if backend == "networkx" else {"backend": backend}

    def partition(graph: Problem, resolution: float, seed: int) -> np.ndarray:
        try:
            groups = communities(nx_graph, weight="weight", resolution=resolution, seed=seed, **elsewhere)
        except (ImportError, NotImplementedError, nx.NetworkXException) as error:  # not installed, not there, not so
            raise ValueError(
                f"backend={backend!r} cannot run algorithm={algorithm!r} on objective={objective!r}: {error} (networkx "
                "itself has algorithm='louvain' alone; backend='igraph' has all)"
            ) from error
        labels = np.empty(graph.out.size, dtype=np.int32)
        for label, members in enumerate(groups):
            labels[list(members)] = label
        return numbered(labels)

    return partition
