"""LowBit: the rows of any method, trained in the few bits in which they are served."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from embcomp.codecs.grid import Grid
from embcomp.codecs.integers import Integers
from embcomp.methods.around import Around, check_not_coded, settings_around
from embcomp.methods.base import FLOAT_BYTES, Ladder, Method, Plan, Sizes, Store, Table, config_around
from embcomp.methods.full import Full
from embcomp.ops.integer_tables import BITS
from embcomp.settings import Within


@dataclass(frozen=True, kw_only=True, eq=False)
class LowBit(Around):
    """A method that rounds another method's rows to few bits with a learned step (Esser et al. 2020, arXiv 1902.08153).

    Float rows are trained, and every look-up rounds them: v(w) = step * (k + 1/2), with k = floor(w / step) clamped to
    -2^(bits-1) <= k < 2^(bits-1). The gradient of a vector goes straight through to rows inside the grid, and the
    gradient of the step comes from the rounding errors (equations 3 to 5). The vectors in validation are therefore
    those that `embcomp.export` packs and serves.

    Args:
        of: the method whose rows are rounded; the savings of both multiply.
        bits: the bits of a served value, 1 to 8.
        step: "table" to learn one step for each store, "row" for one inside each row, or an integer for one step per so
            many consecutive rows.
        rounding: "nearest", or "stochastic" to round up or down at random in training.
        copy: "float" to train float rows. "none" to store only the integers of the grid, with 8 or 4 bits, which
            `embcomp.torchrec.fuse_` updates inside the backward pass with random rounding (Gupta et al. 2015, arXiv
            1502.02551); each row then stores its step in a byte.

    Raises:
        ValueError: bits, step or rounding are invalid or not available with copy="none", or the rows are already coded.

    Example:
        >>> import torch, embcomp
        >>> method = embcomp.LowBit(bits=4, of=embcomp.HashingTrick(rows=1000))
        >>> emb = embcomp.nn.CompressedEmbedding(10_000, 16, method)
        >>> emb(torch.tensor([3, 7])).unique().numel() <= 16  # values, for 4 bits
        True
        >>> embcomp.training_nbytes(emb), embcomp.served_nbytes(emb)
        (64012, 8012)
    """

    of: Method = field(default_factory=Full)
    bits: Annotated[int, Within(1, 8, text="from 1 to 8")] = 4
    step: Literal["table", "row"] | Annotated[int, Within(1)] = "table"
    rounding: Literal["nearest", "stochastic"] = "nearest"
    copy: Literal["float", "none"] = "float"

    def __post_init__(self) -> None:
        if self.copy == "float":
            return
        if self.bits not in BITS:
            raise ValueError(f"LowBit: copy='none' stores 8 or 4 bits, got bits={self.bits}; take copy='float'")
        if self.step != "table":
            raise ValueError(f"LowBit: copy='none' has its own steps, got step={self.step!r}; leave step out")

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        plan = self.of.plan(tables, group)
        for table in plan.tables:
            table.encoder.config = config_around(self.config(), table, table.table)
        return Plan({name: self._coded(name, store) for name, store in plan.stores.items()}, plan.tables)

    def _coded(self, name: str, store: Store) -> Store:
        check_not_coded("LowBit", name, store)
        coding = Grid(self.bits, self.step, self.rounding) if self.copy == "float" else Integers(self.bits)
        return dataclasses.replace(store, coding=coding)

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        return self._coded_sizes(self.of.sizes(tables, group))

    def _coded_sizes(self, sizes: Sizes) -> Sizes:
        stores = {name: self._coded(name, store) for name, store in sizes.stores.items()}
        return dataclasses.replace(sizes, stores=stores)

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return the ladder of the method inside, wrapped.

        Args:
            tables: the tables to compress together.
            nbytes: the budget in bytes.
            fixed: settings of LowBit, settings of the method inside, and `of`: the class of that method, its name, or a
                configuration whose `rows` are chosen anew (by default `Full`).
        """
        inner, own, fixed = settings_around(cls, fixed)
        outer = cls(**own)
        inside = inner.ladder(tables, nbytes * FLOAT_BYTES * 8 // outer.bits, **inner.checked_settings(fixed))
        return inside.around(lambda of: dataclasses.replace(outer, of=of), outer._coded_sizes)
