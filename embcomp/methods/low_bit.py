"""Any table, trained in the few bits in which it is served."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from embcomp.codecs.grid import Grid
from embcomp.codecs.integers import Integers
from embcomp.methods.around import settings_around
from embcomp.methods.base import FLOAT_BYTES, Ladder, Method, Plan, Sizes, Store, Table, config_around
from embcomp.methods.full import Full
from embcomp.ops.integer_tables import BITS
from embcomp.settings import Within


@dataclass(frozen=True, kw_only=True, eq=False)
class LowBit(Method):
    """The rows of another method on a grid of few bits, whose step is learned (Esser et al. 2020, arXiv 1902.08153).

    Float rows are trained, and every look-up rounds them: v(w) = step * (k + 1/2), k the floor of w / step, cut to
    -2^(bits-1) <= k < 2^(bits-1). The gradient goes straight through to rows inside the grid; the step has the gradient
    of its rounding errors (equations 3 to 5). What is validated is what `embcomp.export` packs and serves.

    Args:
        of: the method whose rows are rounded; its sharing of rows and the fewer bits multiply.
        bits: bits of a served value, 1 to 8.
        step: "table" learns one step for each store, "row" one inside each row, an integer one for so many rows that
            follow each other.
        rounding: "nearest", or "stochastic" to round up or down at random while training.
        copy: "float" trains float rows. "none" has no float rows: what is stored are the integers of the grid, 8 or 4
            bits, which `embcomp.torchrec.fuse_` updates inside the backward pass, rounding at random (Gupta et al.
            2015, arXiv 1502.02551). Each row keeps its step in a byte of its own.

    Raises:
        ValueError: bits, a step or a rounding that does not exist, or does not go with copy="none"; a method that
            rounds already.

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
            raise ValueError(f"LowBit: copy='none' has steps of its own, got step={self.step!r}; leave step out")

    @property
    def shares_store(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the method inside."""
        return self.of.shares_store

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        plan = self.of.plan(tables, group)
        for table in plan.tables:
            table.encoder.config = config_around(self.config(), table, table.table)
        return Plan({name: self._coded(name, store) for name, store in plan.stores.items()}, plan.tables)

    def _coded(self, name: str, store: Store) -> Store:
        if store.coding is not None:
            raise ValueError(
                f"table {name!r}: its rows are coded already ({store.coding}); put LowBit around a method that is not"
            )
        coding = Grid(self.bits, self.step, self.rounding) if self.copy == "float" else Integers(self.bits)
        return dataclasses.replace(store, coding=coding)

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        return self._coded_sizes(self.of.sizes(tables, group))

    def _coded_sizes(self, sizes: Sizes) -> Sizes:
        stores = {name: self._coded(name, store) for name, store in sizes.stores.items()}
        return dataclasses.replace(sizes, stores=stores)

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """As `Method.ladder`: the sizes are those of the method inside.

        Args:
            tables: what is to be compressed, together.
            nbytes: the budget in bytes.
            fixed: settings of LowBit; `of`, the class of the method inside, its name, or a configuration whose
                `rows` are chosen anew (by default `Full`); and settings of that method.
        """
        inner, own, fixed = settings_around(cls, fixed)
        outer = cls(**own)
        inside = inner.ladder(tables, nbytes * FLOAT_BYTES * 8 // outer.bits, **inner.checked_settings(fixed))
        return inside.around(lambda of: dataclasses.replace(outer, of=of), outer._coded_sizes)
