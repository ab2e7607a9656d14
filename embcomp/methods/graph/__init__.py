"""Methods by which similar ids share rows: those of clusters in the graph of interactions, or of like signatures."""

from embcomp.methods.graph.encoder import ClusterEncoder
from embcomp.methods.graph.graphhash import DoubleGraphHash, GraphHash
from embcomp.methods.graph.lsh import LSHash, signatures
from embcomp.methods.graph.soft_graphhash import MixtureEncoder, SoftGraphHash

__all__ = ["ClusterEncoder", "DoubleGraphHash", "GraphHash", "LSHash", "MixtureEncoder", "SoftGraphHash", "signatures"]
