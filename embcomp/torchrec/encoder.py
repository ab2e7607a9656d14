"""KeyedJaggedTensor of ids -> that of rows: the parameter-free part, which a training pipeline runs ahead."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embcomp.methods.base import Encoder, Rows
from embcomp.torchrec.layout import Read


class KeyedEncoder(nn.Module):
    """Encodes the features that one inner collection reads. Called once per forward; holds buffers alone.

    Args:
        reads: the chunks to produce, in the order of the collection's features.
        encoders: by table name.
        weighted: whether the result carries weights, of the ids or of the method.
        ids_weighted: whether the batch carries a weight for each id; where it should not, its weights are ignored, as
            torchrec ignores them.
    """

    def __init__(
        self, reads: Sequence[Read], encoders: dict[str, Encoder], weighted: bool, ids_weighted: bool = False
    ) -> None:
        super().__init__()
        self.reads = tuple(reads)
        self.weighted = weighted
        self.ids_weighted = ids_weighted
        self.encoders = nn.ModuleDict({read.table: encoders[read.table] for read in reads})
        self.features = tuple(dict.fromkeys(read.feature for read in reads))

    def forward(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Rows under the keys of the inner collection, with the lengths of the bags times the look-ups of each id.

        Raises:
            KeyError: a feature is missing.
            ValueError: batches of varying size per feature; weights are missing.
        """
        check_features(features, self.features, self.ids_weighted)
        jagged = features.to_dict()
        lengths = features.lengths().view(len(features.keys()), -1)
        position = {key: i for i, key in enumerate(features.keys())}
        encoded: dict[tuple[str, str], list[Rows]] = {}
        values: list[Tensor] = []
        weights: list[Tensor] = []
        for read in self.reads:
            ids = jagged[read.feature]
            if (read.feature, read.table) not in encoded:
                encoded[read.feature, read.table] = self.encoders[read.table](ids.values())
            rows, fixed = encoded[read.feature, read.table][read.chunk]
            values.append(rows.reshape(-1))
            if self.weighted:
                given = ids.weights_or_none() if self.ids_weighted else None
                weights.append(_weights(rows, fixed, given).reshape(-1))
        order = [position[read.feature] for read in self.reads]
        if order != list(range(len(features.keys()))):
            lengths = lengths[order]
        if any(read.lookups > 1 for read in self.reads):
            times = torch.tensor([[read.lookups] for read in self.reads], dtype=lengths.dtype)
            lengths = lengths * times.to(lengths.device, non_blocking=True)
        return KeyedJaggedTensor(
            keys=[read.key for read in self.reads],
            values=torch.cat(values),
            weights=torch.cat(weights) if self.weighted else None,
            lengths=lengths.reshape(-1),
            stride=features.stride(),
            # Known on the host already: asking the lengths would synchronise a GPU.
            length_per_key=None if torch.compiler.is_compiling() else [value.numel() for value in values],
        )


def _weights(rows: Tensor, fixed: Tensor | None, given: Tensor | None) -> Tensor:
    """The factor of each row, [N, lookups]: the method's, times that of the id."""
    if given is None:
        return torch.ones(rows.shape, device=rows.device) if fixed is None else fixed
    return given.unsqueeze(-1).expand(rows.shape) if fixed is None else fixed * given.unsqueeze(-1)


def check_features(features: KeyedJaggedTensor, needed: Sequence[str], weighted: bool) -> None:
    """Raises KeyError for a missing feature, ValueError for missing weights and for batches that differ in size."""
    missing = [name for name in needed if name not in features.keys()]  # noqa: SIM118 (a method of torchrec)
    if missing:
        raise KeyError(f"the batch lacks the features {missing}; it has {features.keys()}")
    if features.variable_stride_per_key():
        raise ValueError("batches whose size varies between features are not supported: expand them first")
    if weighted and features.weights_or_none() is None:
        raise ValueError("the collection is weighted, but the batch carries no weights: give each id one")
