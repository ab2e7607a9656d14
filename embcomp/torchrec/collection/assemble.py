"""The assembly of the results of inner collections into the keys and widths of the replaced collection."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from embcomp.methods.base import Concat
from embcomp.methods.combiners import as_module
from embcomp.ops.together.batch import Constants
from embcomp.torchrec.collection.combine import combined, divided, pool, summed
from embcomp.torchrec.collection.hand import handed
from embcomp.torchrec.collection.layout import Output, Read
from embcomp.tracing import NotScripted, one_node

Branches = Mapping[str, KeyedTensor | dict[str, JaggedTensor]]


def vectors_of_ids(
    outputs: Sequence[Output], features: KeyedJaggedTensor, branches: Branches, constants: Constants
) -> list[Tensor]:
    """Return the vector of each id of each output, [N, dim] each."""
    reads = [(output, read) for output in outputs for read in output.reads]
    found = [branches[read.branch][read.key].values() for _, read in reads]  # pyright: ignore
    plain = [(values, read.lookups) for (_, read), values in zip(reads, found, strict=True) if not read.weighted]
    sums = iter(summed([values for values, _ in plain], [lookups for _, lookups in plain]))
    chunks: dict[str, list[Tensor]] = {output.key: [] for output in outputs}
    fixed: dict[str, list[Tensor | None]] = {}
    for (output, read), values in zip(reads, found, strict=True):
        if read.weighted:
            if output.key not in fixed:
                encoded = output.plan.encoder(features[output.feature].values())
                fixed[output.key] = [rows.weights for rows in encoded]
            weights = fixed[output.key][read.chunk]
            values = values.view(-1, read.lookups, values.shape[-1])
            values = values.sum(1) if weights is None else (values * weights.unsqueeze(-1)).sum(1)
        else:
            values = next(sums)
        chunks[output.key].append(values)
    for output, numbers in zip(outputs, handed(outputs, features, constants), strict=True):
        chunks[output.key] += numbers
    return combined([output.plan.combiner for output in outputs], list(chunks.values()))


def _combiners(outputs: Sequence[Output]) -> nn.ModuleList:
    """The combiners of the tables in their order, registered so that their parameters belong to the model."""
    return nn.ModuleList({output.plan.table.name: output.plan.combiner for output in outputs}.values())


class _Assemble(NotScripted, nn.Module):
    """The base of both modules."""

    outputs: tuple[Output, ...]
    constants: Constants

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not hasattr(self, "combiners"):  # a pickle of before combiners were modules
            for output in self.outputs:
                as_module(output.plan.combiner)
            self.combiners = _combiners(self.outputs)
        if not hasattr(self, "constants"):
            self.constants = Constants()


class AssembleBags(_Assemble):
    """A module from pooled features to one KeyedTensor with the keys, order and widths of the replaced collection."""

    def __init__(self, outputs: Sequence[Output], weighted: bool) -> None:
        super().__init__()
        self.outputs = tuple(outputs)
        self.weighted = weighted
        self.combiners = _combiners(outputs)
        self.constants = Constants()
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
        vectors = {**self._of_bags(pooled), **self._of_ids(features, branches)}
        means = [output for output in self.outputs if output.divide]
        sums, lengths = [vectors[output.key] for output in means], [features[o.feature].lengths() for o in means]
        vectors.update(zip([output.key for output in means], divided(sums, lengths), strict=True))
        return KeyedTensor(keys=keys, length_per_key=dims, values=torch.cat([vectors[k] for k in keys], dim=1))  # pyright: ignore

    def _of_bags(self, bags: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The vectors whose chunks are pooled inside the look-up."""
        outputs = [output for output in self.outputs if output.pooled]
        chunks = [[bags[read.branch][read.key] for read in output.reads] for output in outputs]
        vectors = combined([output.plan.combiner for output in outputs], chunks)
        return dict(zip([output.key for output in outputs], vectors, strict=True))

    def _of_ids(self, features: KeyedJaggedTensor, branches: Branches) -> dict[str, Tensor]:
        """The vectors that are pooled after they are combined."""
        outputs = [output for output in self.outputs if not output.pooled]
        vectors = vectors_of_ids(outputs, features, branches, self.constants)
        ids = [features[output.feature] for output in outputs]
        return dict(zip([output.key for output in outputs], pool(vectors, ids, self.weighted), strict=True))


class AssembleSequences(_Assemble):
    """A module from features per id to a dictionary of JaggedTensors, as the replaced collection returns it."""

    def __init__(self, outputs: Sequence[Output], need_indices: bool) -> None:
        super().__init__()
        self.outputs = tuple(outputs)
        self.need_indices = need_indices
        self.combiners = _combiners(outputs)
        self.constants = Constants()

    @one_node
    def forward(self, features: KeyedJaggedTensor, branches: Branches) -> dict[str, JaggedTensor]:
        result = {}
        vectors = vectors_of_ids(self.outputs, features, branches, self.constants)
        for output, values in zip(self.outputs, vectors, strict=True):
            ids = features[output.feature]
            result[output.key] = JaggedTensor(
                values=values, lengths=ids.lengths(), weights=ids.values() if self.need_indices else None
            )
        return result
