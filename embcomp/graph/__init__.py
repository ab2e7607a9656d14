"""Clusters and maps for graph methods, from interactions. Maps only need torch, the rest needs the extra `graph`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from embcomp.extras import install

if TYPE_CHECKING:
    from embcomp.graph.alignment import align
    from embcomp.graph.cluster_map import ClusterMap
    from embcomp.graph.clustering import Clusters, cluster
    from embcomp.graph.edges import Edges, interactions
    from embcomp.graph.minhash import cluster_stream, sample_neighbours
    from embcomp.graph.mixtures import Mixture
    from embcomp.graph.remapping import remap_
    from embcomp.graph.soft import mixture, second_clusters
    from embcomp.graph.warming import warm_rows

_HOMES = {
    "ClusterMap": "cluster_map",
    "Clusters": "clustering",
    "Edges": "edges",
    "Mixture": "mixtures",
    "align": "alignment",
    "cluster": "clustering",
    "cluster_stream": "minhash",
    "interactions": "edges",
    "mixture": "soft",
    "remap_": "remapping",
    "sample_neighbours": "minhash",
    "second_clusters": "soft",
    "warm_rows": "warming",
}

__all__ = [
    "ClusterMap",
    "Clusters",
    "Edges",
    "Mixture",
    "align",
    "cluster",
    "cluster_stream",
    "interactions",
    "mixture",
    "remap_",
    "sample_neighbours",
    "second_clusters",
    "warm_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        attribute = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"embcomp.graph.{name}: {error}: {install('graph')}") from error
    globals()[name] = attribute
    return attribute
