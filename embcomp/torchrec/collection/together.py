"""The encoding of all features of a batch together: as many operations for a hundred features as for two."""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embcomp.methods.together import Part, alike, batch_of, encode_together
from embcomp.ops.together.batch import Constants
from embcomp.torchrec.collection.layout import Read


class Together:
    """The reads of one inner collection, in groups of encoders that are encoded in one pass.

    Args:
        reads: the reads, in the order of the result.
        encoders: the encoders by table name.
        weighted: True if weights are needed, of the ids or of the method.
    """

    def __init__(self, reads: Sequence[Read], encoders: nn.ModuleDict, weighted: bool) -> None:
        self.reads, self.encoders, self.weighted = tuple(reads), encoders, weighted
        self.constants = Constants()
        groups: dict[Hashable, list[int]] = {}
        for place, read in enumerate(reads):  # one that is encoded alone gives all of its chunks at once
            groups.setdefault(alike(self._part(place)) or (read.feature, read.table), []).append(place)
        self.groups = list(groups.values())

    def __call__(
        self,
        features: KeyedJaggedTensor,
        lengths: Tensor,
        ids: Mapping[str, Tensor],
        given: Mapping[str, Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return rows, flat, in one tensor or one for each read, and their weights in the same form if needed.

        Args:
            features: the batch.
            lengths: the lengths of the batch, [features, bags].
            ids: the ids of the batch by feature.
            given: the weights of the batch by feature, if the ids have weights.

        Raises:
            ValueError: the ids are not integers.
            RuntimeError: an id is out of range; an asynchronous assertion that names the tables of its group.
        """
        counts = lengths.sum(1)
        values: dict[int, Tensor] = {}
        weights: dict[int, Tensor] = {}
        for group in self.groups:
            if alike(self._part(group[0])) is None:
                self._alone(group, ids, given, values, weights)
                continue
            rows, factors = self._group(group, features, counts, ids, given)
            if len(self.groups) == 1:
                return [rows], [] if factors is None else [factors]
            sizes = [ids[self.reads[place].feature].numel() * self.reads[place].lookups for place in group]
            values.update(zip(group, rows.split(sizes), strict=True))
            if factors is not None:
                weights.update(zip(group, factors.split(sizes), strict=True))
        order = range(len(self.reads))
        return [values[place] for place in order], [weights[place] for place in order] if self.weighted else []

    def _part(self, place: int) -> Part:
        return Part(self.encoders[self.reads[place].table], self.reads[place].chunk)

    def _group(
        self,
        group: list[int],
        features: KeyedJaggedTensor,
        counts: Tensor,
        ids: Mapping[str, Tensor],
        given: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        read = [self.reads[place].feature for place in group]
        keys = list(features.keys())
        order = None if read == keys else tuple(map(keys.index, read))
        parts = [self._part(place) for place in group]
        ids_of = [ids[feature] for feature in read]
        rows, fixed = encode_together(parts, batch_of(parts, features.values(), counts, order, ids_of, self.constants))
        if not self.weighted:
            return rows.reshape(-1), None
        factors = None
        if given:
            factors = features.weights() if order is None else torch.cat([given[feature] for feature in read])
        return rows.reshape(-1), row_weights(rows, fixed, factors).reshape(-1)

    def _alone(
        self,
        group: list[int],
        ids: Mapping[str, Tensor],
        given: Mapping[str, Tensor],
        values: dict[int, Tensor],
        weights: dict[int, Tensor],
    ) -> None:
        feature = self.reads[group[0]].feature
        chunks = self._part(group[0]).encoder(ids[feature])
        for place in group:
            rows, fixed = chunks[self.reads[place].chunk]
            values[place] = rows.reshape(-1)
            if self.weighted:
                weights[place] = row_weights(rows, fixed, given.get(feature)).reshape(-1)


def row_weights(rows: Tensor, fixed: Tensor | None, given: Tensor | None) -> Tensor:
    """Return the factor of each row, [N, lookups]: that of the method times that of the id."""
    if given is None:
        return torch.ones(rows.shape, dtype=torch.float32, device=rows.device) if fixed is None else fixed
    return given.unsqueeze(-1).expand(rows.shape) if fixed is None else fixed * given.unsqueeze(-1)
