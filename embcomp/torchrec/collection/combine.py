"""The combination of the vectors of all features: on a GPU, in as many operations for a hundred features as for two."""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchrec.sparse.jagged_tensor import JaggedTensor

from embcomp.methods.base import Combiner, Concat
from embcomp.nn.stores import pool_vectors
from embcomp.ops.bags import transformed

_SMALL = 1 << 20  # floats of a feature: a GPU copies them in the time of a launch


def pays_together(vectors: Sequence[Tensor]) -> bool:
    """Return whether the copies that put vectors end to end cost less than an operation for each of them."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or transformed():  # pyright: ignore
        return False
    return vectors[0].device.type not in ("cpu", "meta") and is_small(vectors)


def is_small(vectors: Sequence[Tensor]) -> bool:
    """Return whether the vectors of a feature are few on average."""
    return sum(each.numel() for each in vectors) <= _SMALL * len(vectors)


def in_groups(
    kinds: Sequence[Hashable], inputs: Sequence[Sequence[Tensor]], work: Callable[[int, list[Tensor]], Tensor]
) -> list[Tensor]:
    """Do some work on rows for all features of a kind together.

    Args:
        kinds: the kind of each feature; None for one on which the work is done alone.
        inputs: the tensors of each feature, [N, ...] each, all of the same N for one feature.
        work: the work, which is given the number of a feature of a kind and the tensors of all of them, end to end, and
            returns a row for each row.

    Returns:
        The result of each feature, [N, ...].
    """
    groups: dict[Hashable, list[int]] = {}
    for number, kind in enumerate(kinds):
        shapes = tuple(tensor.shape[1:] for tensor in inputs[number])
        groups.setdefault(number if kind is None else (kind, shapes), []).append(number)
    results: dict[int, Tensor] = {}
    for group in groups.values():
        if len(group) == 1:
            results[group[0]] = work(group[0], list(inputs[group[0]]))
            continue
        joined = [torch.cat(column) for column in zip(*(inputs[number] for number in group), strict=True)]
        sizes = [len(inputs[number][0]) for number in group]
        results.update(zip(group, work(group[0], joined).split(sizes), strict=True))
    return [results[number] for number in range(len(kinds))]


def kind_of(combiner: Combiner) -> Hashable | None:
    """Return a key of combiners that do the same; None for one that holds tensors of its own."""
    own = combiner.alike()
    return None if own is None else (type(combiner), own)


def combined(combiners: Sequence[Combiner], chunks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return the vectors that combiners make of the chunks of each feature, [N, dim of chunk] each."""
    together = bool(chunks) and pays_together([own[0] for own in chunks])
    kinds = [
        kind_of(combiner) if together and not (type(combiner) is Concat and len(own) == 1) else None
        for combiner, own in zip(combiners, chunks, strict=True)
    ]
    given = [
        [*own, *(getattr(combiner, name).expand(len(own[0]), -1) for name in combiner.beside if kind is not None)]
        for combiner, kind, own in zip(combiners, kinds, chunks, strict=True)
    ]

    def combine(number: int, joined: list[Tensor]) -> Tensor:
        return combiners[number](joined) if kinds[number] is None else combiners[number].combine(joined)

    return in_groups(kinds, given, combine)


def summed(values: Sequence[Tensor], lookups: Sequence[int]) -> list[Tensor]:
    """Add up the look-ups of each id of each feature: [N * lookups, dim] -> [N, dim]."""
    together = bool(values) and pays_together(values)
    kinds = [each if together and each > 1 else None for each in lookups]

    def add(number: int, joined: list[Tensor]) -> Tensor:
        each = lookups[number]
        return joined[0].sum(1) if each > 1 else joined[0]

    inputs = [
        [own.view(-1, each, own.shape[-1]) if each > 1 else own] for own, each in zip(values, lookups, strict=True)
    ]
    return in_groups(kinds, inputs, add)


def pool(vectors: Sequence[Tensor], ids: Sequence[JaggedTensor], weighted: bool) -> list[Tensor]:
    """Add up the vectors of each bag of each feature, [N, dim] -> [bags, dim], times the weights of the ids if any."""
    groups: dict[Hashable, list[int]] = {}
    together = bool(vectors) and pays_together(vectors)
    for number, own in enumerate(vectors):
        groups.setdefault(own.shape[-1] if together else (number,), []).append(number)
    bags: dict[int, Tensor] = {}
    for group in groups.values():
        some = [ids[number] for number in group]
        weights = _joined([each.weights() for each in some]) if weighted else None
        lengths = [each.lengths() for each in some]
        offsets = some[0].offsets() if len(some) == 1 else F.pad(torch.cat(lengths).cumsum(0), (1, 0))
        own = _joined([vectors[number] for number in group])
        out = pool_vectors(own, offsets, "sum", None if weights is None else weights.to(own.dtype))
        bags.update(zip(group, [out] if len(some) == 1 else out.split([len(each) for each in lengths]), strict=True))
    return [bags[number] for number in range(len(vectors))]


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def divided(bags: Sequence[Tensor], lengths: Sequence[Tensor]) -> list[Tensor]:
    """Divide sums of bags by their number of ids, at least 1."""
    kinds = [True if bags and pays_together(bags) else None] * len(bags)

    def divide(number: int, joined: list[Tensor]) -> Tensor:
        bag, length = joined
        return bag / length.clamp(min=1).unsqueeze(-1).to(bag.dtype)

    return in_groups(kinds, list(zip(bags, lengths, strict=True)), divide)
