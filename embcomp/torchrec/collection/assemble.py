"""The assembly of the results of inner collections into the keys and widths of the replaced collection."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from embcomp.methods.base import Concat
from embcomp.nn.stores import pool_vectors
from embcomp.torchrec.collection.layout import Output, Read
from embcomp.tracing import NotScripted, one_node

Branches = Mapping[str, KeyedTensor | dict[str, JaggedTensor]]


def sequence_chunks(output: Output, features: KeyedJaggedTensor, branches: Branches) -> list[Tensor]:
    """Return the chunks of one feature per id, [N, dim] each, look-ups added up (times the method's fixed weights)."""
    chunks = []
    fixed = (
        [rows.weights for rows in output.plan.encoder(features[output.feature].values())]
        if output.plan.weighted
        else []
    )
    for read in output.reads:
        values = branches[read.branch][read.key].values()  # pyright: ignore[reportAttributeAccessIssue]
        if read.lookups > 1 or read.weighted:
            values = values.view(-1, read.lookups, values.shape[-1])
            weights = fixed[read.chunk] if read.weighted else None
            values = values.sum(1) if weights is None else (values * weights.unsqueeze(-1)).sum(1)
        chunks.append(values)
    encoder = output.plan.encoder
    return [*chunks, *encoder.hand(features[output.feature].values())] if encoder.hands else chunks


def _combiners(outputs: Sequence[Output]) -> nn.ModuleList:
    """The combiners of the tables in their order, registered so that their parameters belong to the model."""
    return nn.ModuleList({output.plan.table.name: output.plan.combiner for output in outputs}.values())


class AssembleBags(NotScripted, nn.Module):
    """A module from pooled features to one KeyedTensor with the keys, order and widths of the replaced collection."""

    def __init__(self, outputs: Sequence[Output], weighted: bool) -> None:
        super().__init__()
        self.outputs = tuple(outputs)
        self.weighted = weighted
        self.combiners = _combiners(outputs)
        reads: list[Read] = [read for output in outputs for read in output.reads]
        # Chunks that only stand side by side already do so in the inner result: it is taken as it is, without a copy.
        self.as_is = (
            all(type(output.plan.combiner) is Concat and output.pooled and not output.divide for output in outputs)
            and len({read.branch for read in reads}) == 1
        )
        self.inner_keys = [read.key for read in reads]

    @one_node
    def forward(self, features: KeyedJaggedTensor, branches: Branches) -> KeyedTensor:
        keys = [output.key for output in self.outputs]
        dims = [output.dim for output in self.outputs]
        if self.as_is:
            (inner,) = branches.values()
            if list(inner.keys()) == self.inner_keys:  # a sharding may have put them in another order
                return KeyedTensor(keys=keys, length_per_key=dims, values=inner.values())  # pyright: ignore
        # By name: a sharded collection answers with an awaitable, which is no KeyedTensor yet.
        bags = {name: result for name, result in branches.items() if not name.startswith("sequences")}
        pooled = {name: result.to_dict() for name, result in bags.items()}  # pyright: ignore
        vectors = [self._vector(output, features, branches, pooled) for output in self.outputs]
        return KeyedTensor(keys=keys, length_per_key=dims, values=torch.cat(vectors, dim=1))

    def _vector(
        self, output: Output, features: KeyedJaggedTensor, branches: Branches, pooled: dict[str, dict[str, Tensor]]
    ) -> Tensor:
        ids = features[output.feature]
        if output.pooled:
            vector = output.plan.combiner([pooled[read.branch][read.key] for read in output.reads])
        else:
            each = output.plan.combiner(sequence_chunks(output, features, branches))
            weights = ids.weights_or_none() if self.weighted else None
            vector = pool_vectors(each, ids.offsets(), "sum", None if weights is None else weights.to(each.dtype))
        if output.divide:
            vector = vector / ids.lengths().clamp(min=1).unsqueeze(-1).to(vector.dtype)
        return vector


class AssembleSequences(NotScripted, nn.Module):
    """A module from features per id to a dictionary of JaggedTensors, as the replaced collection returns it."""

    def __init__(self, outputs: Sequence[Output], need_indices: bool) -> None:
        super().__init__()
        self.outputs = tuple(outputs)
        self.need_indices = need_indices
        self.combiners = _combiners(outputs)

    @one_node
    def forward(self, features: KeyedJaggedTensor, branches: Branches) -> dict[str, JaggedTensor]:
        result = {}
        for output in self.outputs:
            ids = features[output.feature]
            result[output.key] = JaggedTensor(
                values=output.plan.combiner(sequence_chunks(output, features, branches)),
                lengths=ids.lengths(),
                weights=ids.values() if self.need_indices else None,
            )
        return result
