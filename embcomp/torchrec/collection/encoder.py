"""The encoder from a KeyedJaggedTensor of ids to one of rows: it has no parameters, so pipelines can run it ahead."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embcomp.methods.base import Encoder, Rows
from embcomp.ops.bags import transformed
from embcomp.ops.checks import INTEGERS, readable
from embcomp.ops.hashed_features import hash_features
from embcomp.torchrec.checks import check_features
from embcomp.torchrec.collection.layout import Read
from embcomp.torchrec.collection.together import Together, row_weights
from embcomp.tracing import NotScripted, one_node


class KeyedEncoder(NotScripted, nn.Module):
    """The encoder of the features that one inner collection reads, called once per forward; it holds only buffers.

    Args:
        reads: the chunks to produce, in the order of the collection's features.
        encoders: the encoders by table name.
        weighted: True if the result has weights, of the ids or of the method.
        ids_weighted: True if the batch must have a weight for each id; if False its weights are ignored, as in
            torchrec.
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
        self.runs = _runs(self.reads)
        self.counts = {read.table: read.chunks for read in reads}
        self.whole = not weighted and all(len(run) == self.counts[run[0].table] for run in self.runs)
        self.together = Together(self.reads, self.encoders, weighted)
        self._orders: dict[tuple[tuple[str, ...], torch.device], tuple[Tensor | None, Tensor | None]] = {}

    @one_node
    def forward(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Return rows under the keys of the inner collection, with the bags' lengths times the look-ups of each id.

        Raises:
            KeyError: a feature is missing.
            ValueError: batch sizes vary between features, or weights are missing.
        """
        check_features(features, self.features, self.ids_weighted)
        ids, given = _by_feature(features, self.ids_weighted)
        lengths = features.lengths().view(len(features.keys()), -1)
        if _pays_together(features.values()):
            values, weights = self.together(features, lengths, ids, given)
        elif self.whole and len(self.runs) > 1 and readable(features.values()):
            values, weights = [self._in_place(features, ids)], []
        else:
            values, weights = self._encode(ids, given)
        order, times = self._order(tuple(features.keys()), lengths)
        if order is not None:
            lengths = lengths.index_select(0, order)
        if times is not None:
            lengths = lengths * (times if times.dtype == lengths.dtype else times.to(lengths.dtype))
        # Known on the host already: asking the lengths would synchronise a GPU.
        sizes = None if torch.compiler.is_compiling() else [ids[r.feature].numel() * r.lookups for r in self.reads]
        return KeyedJaggedTensor(
            keys=[read.key for read in self.reads],
            values=values[0] if len(values) == 1 else torch.cat(values),
            weights=torch.cat(weights) if self.weighted else None,
            lengths=lengths.reshape(-1),
            stride=features.stride(),
            length_per_key=sizes,
        )

    def _in_place(self, features: KeyedJaggedTensor, ids: dict[str, Tensor]) -> Tensor:
        """The rows of `_encode`, written straight into one tensor; for unweighted collections."""
        sizes = [ids[run[0].feature].numel() * sum(read.lookups for read in run) for run in self.runs]
        out = torch.empty(sum(sizes), dtype=torch.int64, device="cpu")
        if self._hashed(features, out):
            return out
        for run, part in zip(self.runs, out.split(sizes), strict=True):
            self.encoders[run[0].table].packed(ids[run[0].feature], part)  # pyright: ignore[reportCallIssue]
        return out

    def _hashed(self, features: KeyedJaggedTensor, out: Tensor) -> bool:
        """Write the rows in one call if all encoders are plain hashes. Return whether all ids were right and are so."""
        values = features.values()
        hashes = [self.encoders[run[0].table].hashes() for run in self.runs]  # pyright: ignore[reportCallIssue]
        keys = [each.keys for each in hashes if each is not None]
        if values.dtype not in INTEGERS or len(keys) < len(hashes) or not readable(values, out, *keys):
            return False
        ends = list(accumulate(features.length_per_key(), initial=0))
        spans = dict(zip(features.keys(), pairwise(ends), strict=True))
        own = [spans[run[0].feature] for run in self.runs]
        return hash_features(values.long().contiguous(), own, hashes, out) is None

    def _encode(self, ids: dict[str, Tensor], given: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The rows, and weights if needed, in the order of the reads."""
        encoded: dict[tuple[str, str], list[Rows]] = {}
        values: list[Tensor] = []
        weights: list[Tensor] = []
        for run in self.runs:
            feature, table = run[0].feature, run[0].table
            encoder = self.encoders[table]
            if not self.weighted and len(run) == self.counts[table]:
                values.append(encoder.packed(ids[feature]))  # pyright: ignore[reportCallIssue]
                continue
            if (feature, table) not in encoded:
                encoded[feature, table] = encoder(ids[feature])
            for read in run:
                rows, fixed = encoded[feature, table][read.chunk]
                values.append(rows.reshape(-1))
                if self.weighted:
                    weights.append(row_weights(rows, fixed, given.get(feature)).reshape(-1))
        return values, weights

    def _order(self, keys: tuple[str, ...], lengths: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The index of each read's feature, and the factor of its lengths; None where nothing changes."""
        # What is made of tracing stand-ins, or under torch.func, is not to be kept.
        if torch.compiler.is_compiling() or type(lengths) is not Tensor or transformed():
            return self._make_order(keys, lengths.device)
        if (keys, lengths.device) not in self._orders:
            self._orders[keys, lengths.device] = self._make_order(keys, lengths.device)
        return self._orders[keys, lengths.device]

    def _make_order(self, keys: tuple[str, ...], device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        position = {key: i for i, key in enumerate(keys)}
        order = [position[read.feature] for read in self.reads]
        lookups = [[read.lookups] for read in self.reads]
        same = order == list(range(len(keys)))
        return (
            None if same else torch.tensor(order, device=device),
            None if all(n == [1] for n in lookups) else torch.tensor(lookups, device=device),
        )


def _runs(reads: tuple[Read, ...]) -> tuple[tuple[Read, ...], ...]:
    """Group reads that are consecutive chunks of one feature in one table."""
    runs: list[list[Read]] = []
    for read in reads:
        last = runs[-1][-1] if runs else None
        if last and (last.feature, last.table, last.chunk + 1) == (read.feature, read.table, read.chunk):
            runs[-1].append(read)
        else:
            runs.append([read])
    return tuple(map(tuple, runs))


def _by_feature(features: KeyedJaggedTensor, weighted: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The ids of each feature, and their weights if needed."""
    keys = features.keys()
    if torch.compiler.is_compiling():
        jagged = features.to_dict()
        ids = {key: jagged[key].values() for key in keys}
        return ids, {key: jagged[key].weights() for key in keys} if weighted else {}
    sizes = features.length_per_key()
    ids = dict(zip(keys, features.values().split(sizes), strict=True))
    return ids, dict(zip(keys, features.weights().split(sizes), strict=True)) if weighted else {}


def _pays_together(values: Tensor) -> bool:
    """Return whether launches cost more than arithmetic: on a GPU, and in compiled graphs.

    On a CPU, C++ encodes feature by feature. An exported graph uses only operations that other runtimes support.
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or transformed():  # pyright: ignore
        return False
    return torch.compiler.is_compiling() or values.device.type not in ("cpu", "meta")
