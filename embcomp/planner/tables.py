"""The tables that a plan is made for: those of a model, or sizes alone."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor, nn

from embcomp.match import fits
from embcomp.methods.full import Full
from embcomp.methods.plan import FLOAT_BYTES
from embcomp.methods.request import tables_of
from embcomp.methods.table import Table
from embcomp.nn.holders import TorchHolder
from embcomp.references import check_not_held
from embcomp.settings import checked, shown
from embcomp.swaps import Plain, plain_holders

Widths = Literal["any", "fbgemm"]
Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Held:
    """One table of the model.

    Attributes:
        table: its name, number of ids and width.
        names: the names that a pattern may match; the first is the one that `compress_` uses.
        home: a key; tables of one home may share a store.
        widths: "fbgemm" if the width of rows must be a multiple of 4.
        weight: the trained vectors, [num_embeddings, embedding_dim]; None without a model.
        padding: the id whose vector is stored separately, or None.
        kept: the reason why the table stays unchanged, or "".
        again: True if an earlier table has the same weight, whose bytes count once.
    """

    table: Table
    names: Sequence[str]
    home: int = 0
    widths: Widths = "any"
    weight: Tensor | None = None
    padding: int | None = None
    kept: str = ""
    again: bool = False

    @property
    def name(self) -> str:
        return self.table.name

    @property
    def apart(self) -> int:
        """The bytes that a method takes beside its own: the vector of the padding id in float32, unless it is zero."""
        if self.padding is None or self.weight is None or self.weight.is_meta:
            return 0
        return FLOAT_BYTES * self.table.embedding_dim * bool(self.weight[self.padding].any())

    @property
    def nbytes(self) -> int:
        """The bytes of the full table in float32; 0 for an open id space, and for a weight that was counted."""
        return 0 if self.again else (self.table.num_embeddings or 0) * self.table.embedding_dim * FLOAT_BYTES


def held_tables(
    asked: nn.Module | Sequence[Table], keep: str | Collection[str] | None, widths: Widths | None = None
) -> list[Held]:
    """Return the tables of a model, or the given ones, with the reasons why some must stay unchanged.

    Args:
        asked: a model, or tables.
        keep: glob patterns of tables that stay unchanged.
        widths: the allowed widths of rows; None for "fbgemm" if a torchrec collection is not on the CPU.

    Raises:
        TypeError: `asked` is neither a model nor tables, or a pattern is not a text.
        ValueError: `widths` is unknown, there is no table, two have one name, or a pattern matches none.
    """
    checked(widths, Widths | None, "widths")
    if isinstance(asked, nn.Module):
        held = _weights_once([table for holder in plain_holders(asked) for table in _of(asked, holder, widths)])
    else:
        held = [Held(table, [table.name], widths=widths or "any") for table in tables_of(asked)]
    if not held:
        raise ValueError("the model has no embedding table that compress_ knows" if asked else "tables: got none")
    names = [table.name for table in held]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"tables must have different names, got {twice!r} twice")
    if not isinstance(keep, str | Collection | None):
        raise TypeError(f"keep must be patterns over table names, got {shown(keep)}")
    patterns = [keep] if isinstance(keep, str) else list(keep or ())
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"keep must be patterns over table names, got {shown(pattern)}")
        if not any(matches(table, pattern) for table in held):
            raise ValueError(f"keep: the pattern {pattern!r} matches no table; the tables are {names}")
    return [
        dataclasses.replace(t, kept="kept as asked") if any(matches(t, pattern) for pattern in patterns) else t
        for t in held
    ]


def _weights_once(held: Sequence[Held]) -> list[Held]:
    """Mark the tables whose weight is that of an earlier one."""
    first: dict[int, Held] = {}
    marked = []
    for table in held:
        owner = table if table.weight is None else first.setdefault(id(table.weight), table)
        if owner is not table:
            kept = table.kept or f"its weight is that of {owner.name}"
            table = dataclasses.replace(table, kept=kept, again=True)
        marked.append(table)
    return marked


def matches(held: Held, pattern: str) -> bool:
    """Return whether a glob pattern matches a name of the table."""
    return fits(pattern, held.names)


def owners(held: Sequence[Held], name: str) -> list[Held]:
    """Return the tables of a name: those that have it, or else those whose path in the model ends with it.

    The name may be that of a feature of the log, which knows nothing of the model's paths.
    """
    exact = [table for table in held if name in table.names]
    return exact or [table for table in held if name == table.name.rpartition(".")[2]]


def by_name(held: Sequence[Held], given: Mapping[str, Value] | None, what: str) -> dict[str, Value]:
    """Return values by the name of their table.

    Raises:
        TypeError: `given` is not a mapping.
        ValueError: no table has a name.
    """
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"{what} must be a mapping from names of tables, got {shown(given)}")
    result: dict[str, Value] = {}
    for name, value in (given or {}).items():
        found = owners(held, name)
        if not found:
            raise ValueError(f"{what} names {name!r}, which is not a table; these are {[table.name for table in held]}")
        result |= {owner.name: value for owner in found}
    return result


def _of(model: nn.Module, holder: Plain, widths: Widths | None) -> list[Held]:
    reason = _why_kept(model, holder)
    torchrec = not isinstance(holder, TorchHolder)
    held = []
    for table in holder.tables.values():
        weight = table.weight
        allowed = widths or ("fbgemm" if torchrec and weight.device.type != "cpu" else "any")
        own = reason or ("" if weight.requires_grad else "its weight is frozen")
        home = id(holder) if torchrec else hash((weight.device, weight.dtype))
        padding = getattr(holder.module, "padding_idx", None)
        held.append(Held(table.table, table.names, home, allowed, weight, padding, own))
    return held


def _why_kept(model: nn.Module, holder: Plain) -> str:
    """The reason why a module cannot be swapped, or ""."""
    try:
        holder.check(dict.fromkeys(holder.tables, Full()))
        check_not_held(model, [holder])
    except ValueError as error:
        return str(error)
    return ""
