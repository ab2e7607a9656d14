"""FrequencyBits: the rows of any method in groups by frequency, each with its own number of bits, which is learned."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor

from embcomp.codecs.mixed_grid import MixedGrid
from embcomp.codecs.shared_bits import sizes_of
from embcomp.methods.around import check_not_coded, settings_around
from embcomp.methods.base import (
    FLOAT_BYTES,
    Ladder,
    Method,
    Plan,
    Sizes,
    Store,
    Table,
    check_counts,
    config_around,
    per_table,
)
from embcomp.methods.full import Full
from embcomp.methods.reads import reads_of, vector_stores
from embcomp.ops.allotment import allot, by_rank
from embcomp.settings import Share, Within

_STEPS = 64  # sizes of the ladder in a bit


@dataclass(frozen=True, kw_only=True, eq=False)
class FrequencyBits(Method):
    """Rows in groups by frequency, each group rounded to bits of its own number (MPE, Li et al. 2024, 2409.20305).

    Rows are sorted by how often they are read, and cut into groups of equally many. `embcomp.Schedule` searches the
    bits in the first epochs: a row w is then the mixture sum_b p_b Q_b(w) over 0 to `bits` bits, with the learned
    p = softmax(logits of its group / temperature), and the loss gets strength * sum_g (c_min / c_g) sum_b p_gb b, c the
    reads of a group. Then each group gets its bits, and the model is trained again from its initial values, rounding as
    it will be served. Steps are learned, one for each number of bits; rows without bits have the same learned vector.

    With `mean_bits` all tables choose together: the bits that lose least of the rows, the squared error of a row times
    the root of its reads. `init="warm"` and `init="fit"` choose so for the trained vectors, and a schedule then
    searches nothing. Without a schedule, frequent groups have more bits at once, as suits reads by Zipf's law.

    Args:
        counts: the occurrences of each id in training, [num_embeddings], or a mapping from table names to such tensors.
        mean_bits: the most mean bits of a value, after a search or a fit of all values of all tables. None chooses, as
            the paper, the most bits of each group whose probability is at least half of an equal share.
        of: the method whose rows are rounded.
        bits: the most bits of a value, 1 to 8.
        groups: the number of groups.
        temperature: the temperature of the probabilities; by default 3 times the learning rate that the schedule finds,
            as in the paper, so that probabilities move at one pace, or 0.003 if it finds none.
        strength: the factor of the penalty on the expected bits.
        search: the share of the epochs that search, rounded to whole epochs, at least one.

    Raises:
        ValueError: the rows of the method inside are already coded, counts do not fit, `mean_bits` is above `bits`, or
            an id space is open.

    Example:
        >>> import torch, embcomp
        >>> counts = 1_000_000 / torch.arange(1, 1001)  # id 0 is the most frequent one
        >>> model = torch.nn.ModuleDict({"item": torch.nn.Embedding(1000, 16)})
        >>> report = embcomp.compress_(model, embcomp.FrequencyBits(counts=counts, mean_bits=2, groups=4), init="fit")
        >>> model["item"].stores[0].codec.bits
        [3, 2, 2, 1]
        >>> [model["item"].materialize()[:, 0][ids].unique().numel() for ids in (slice(0, 250), slice(750, 1000))]
        [8, 2]
    """

    sized_in_steps: ClassVar[bool] = True
    sized_by: ClassVar[str] = "mean_bits"

    counts: Tensor | Mapping[str, Tensor] = field(repr=False)
    mean_bits: Annotated[float, Within(0.0, 8.0)] | None = None
    of: Method = field(default_factory=Full)
    bits: Annotated[int, Within(1, 8, text="from 1 to 8")] = 6
    groups: Annotated[int, Within(1, 255)] = 128
    temperature: Annotated[float, Within(1e-6)] | None = None
    strength: Annotated[float, Within(0.0)] = 3e-4
    search: Share = 0.5

    def __post_init__(self) -> None:
        if self.mean_bits is not None and self.mean_bits > self.bits:
            raise ValueError(
                f"FrequencyBits: mean_bits={self.mean_bits} is above bits={self.bits}, the most of a value; lower it"
            )

    @property
    def shares_store(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True if the method inside shares its store."""
        return self.of.shares_store

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        for table in tables:
            check_counts(per_table(self.counts, table, "counts"), table)
        return self._coded_sizes(self.of.sizes(tables, group))

    def _coded_sizes(self, sizes: Sizes) -> Sizes:
        stores = {name: self._coded(name, store) for name, store in vector_stores(sizes.stores).items()}
        return dataclasses.replace(sizes, stores={**sizes.stores, **stores})

    def _coded(self, name: str, store: Store, reads: Tensor | None = None) -> Store:
        """Return the coded store; for its sizes alone, without the reads of its rows."""
        check_not_coded("FrequencyBits", name, store)
        group, rarity = (None, None) if reads is None else _grouped(reads.cpu(), self.groups)
        most = self.bits if self.mean_bits is None else self.mean_bits
        bits = _by_rank(store.rows, self.groups, self.bits, most)
        settings = (self.mean_bits, self.temperature, self.strength, self.search)
        return dataclasses.replace(store, coding=MixedGrid(bits, self.bits, *settings, group, rarity))

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        plan, reads = self.of.plan(tables, group), dict[str, Tensor]()
        vectors = vector_stores(plan.stores)
        for table in plan.tables:
            counts = check_counts(per_table(self.counts, table.table, "counts"), table.table)
            for name, own in reads_of(table, counts, vectors).items():
                reads[name] = reads[name] + own if name in reads else own
            table.encoder.config = config_around(self.config(without=["counts"]), table, table.table)
        coded = {name: self._coded(name, store, reads[name]) for name, store in vectors.items()}
        return Plan({**plan.stores, **coded}, plan.tables)

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return a ladder by `mean_bits`, in steps of 1 / 64, or with given `mean_bits` that of the method inside.

        Args:
            tables: the tables to compress together.
            nbytes: the budget in bytes.
            fixed: settings of FrequencyBits, settings of the method inside, and `of`: the class of that method, its
                name, or a configuration whose `rows` are chosen anew (by default `Full`); without `mean_bits` a
                configuration.
        """
        if "mean_bits" not in fixed:
            outer = cls(**fixed)

            def make(size: int) -> Self:
                return dataclasses.replace(outer, mean_bits=size / _STEPS)

            return Ladder(make, lambda size: make(size).sizes(tables), most=_STEPS * outer.bits)
        inner, own, fixed = settings_around(cls, fixed)
        if "counts" in {f.name for f in dataclasses.fields(inner)}:
            fixed["counts"] = own["counts"]
        outer = cls(**own)
        mean = max(1.0, outer.bits if outer.mean_bits is None else outer.mean_bits)
        inside = inner.ladder(tables, int(nbytes * FLOAT_BYTES * 8 / mean), **inner.checked_settings(fixed))
        return inside.around(lambda of: dataclasses.replace(outer, of=of), outer._coded_sizes)


@functools.cache
def _by_rank(rows: int, groups: int, most: int, mean: float) -> tuple[int, ...]:
    """Return the bits of each group before anything is learned; a search for a budget asks often."""
    return tuple(allot(by_rank(groups, most), sizes_of(rows, groups), mean).tolist())


def _grouped(reads: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return the group of each row, uint8 [rows], and one over the reads of each group, 0 for a group without rows."""
    rank = torch.argsort(torch.argsort(reads, descending=True, stable=True))
    group = rank * groups // len(rank)
    total = torch.zeros(groups, dtype=torch.float64, device="cpu").index_add_(0, group, reads)
    total.clamp_(min=reads[reads > 0].min().clamp(max=1.0) if bool(reads.any()) else 1.0)  # counts may be shares
    return group.to(torch.uint8), (torch.bincount(group, minlength=groups).clamp(max=1) / total).float()
