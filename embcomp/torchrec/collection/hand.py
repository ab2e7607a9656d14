"""The numbers that encoders hand to combiners: on a GPU, in as many operations for a hundred features as for two."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embcomp.methods.together import Part, batch_of, hand_alike, hand_together
from embcomp.ops.together.batch import Constants
from embcomp.torchrec.collection.combine import pays_together
from embcomp.torchrec.collection.layout import Output


def handed(outputs: Sequence[Output], features: KeyedJaggedTensor, constants: Constants) -> list[list[Tensor]]:
    """Return for each output what its encoder hands over for each id, [N, ...] each; nothing for most encoders.

    Args:
        outputs: the outputs.
        features: the batch.
        constants: the cache of the numbers of groups of encoders.

    Raises:
        RuntimeError: an id is out of range; where several are encoded at once, an asynchronous assertion.
    """
    result: list[list[Tensor]] = [[] for _ in outputs]
    handing = [number for number, output in enumerate(outputs) if output.plan.encoder.hands]
    if not handing:
        return result
    together = pays_together([features[outputs[number].feature].values() for number in handing])
    groups: dict[Hashable, list[int]] = {}
    for number in handing:
        kind = hand_alike(outputs[number].plan.encoder) if together else None
        groups.setdefault(number if kind is None else kind, []).append(number)
    for group in groups.values():
        if len(group) == 1:
            output = outputs[group[0]]
            result[group[0]] = output.plan.encoder.hand(features[output.feature].values())
            continue
        for numbers in _of_group([outputs[number] for number in group], features, constants):
            for number, own in zip(group, numbers, strict=True):
                result[number].append(own)
    return result


def _of_group(outputs: Sequence[Output], features: KeyedJaggedTensor, constants: Constants) -> list[tuple[Tensor, ...]]:
    """Return what encoders of a kind hand over, one tensor for each output."""
    keys = list(features.keys())
    read = [output.feature for output in outputs]
    order = None if read == keys else tuple(map(keys.index, read))
    parts = [Part(output.plan.encoder, 0) for output in outputs]
    ids_of = [features[feature].values() for feature in read]
    counts = features.lengths().view(len(keys), -1).sum(1)
    batch = batch_of(parts, features.values(), counts, order, ids_of, constants)
    sizes = [ids.numel() for ids in ids_of]
    return [torch.split(numbers, sizes) for numbers in hand_together(parts, batch)]
