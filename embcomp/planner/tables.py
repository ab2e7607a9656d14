"""The tables that a plan is made for: those of a model, or numbers alone."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from embcomp.match import fits
from embcomp.methods.full import Full
from embcomp.methods.plan import FLOAT_BYTES
from embcomp.methods.request import tables_of
from embcomp.methods.table import Table
from embcomp.nn.holders import TorchHolder
from embcomp.references import check_not_held
from embcomp.settings import shown
from embcomp.swaps import Plain, plain_holders

Widths = Literal["any", "fbgemm"]


@dataclass(frozen=True, eq=False)
class Held:
    """One table of the model.

    Attributes:
        table: its numbers.
        names: what a pattern may match, the name that `compress_` knows it by first.
        home: tables of one home may share a store.
        widths: "fbgemm" where rows must be a multiple of 4 wide.
        weight: the trained vectors [num_embeddings, embedding_dim]; None without a model.
        padding: the id whose vector is stored apart, if any.
        kept: why it stays as it is, or nothing.
    """

    table: Table
    names: Sequence[str]
    home: int = 0
    widths: Widths = "any"
    weight: Tensor | None = None
    padding: int | None = None
    kept: str = ""

    @property
    def name(self) -> str:
        return self.table.name

    @property
    def nbytes(self) -> int:
        """Bytes of the full table in float32; 0 for an open id space."""
        return (self.table.num_embeddings or 0) * self.table.embedding_dim * FLOAT_BYTES


def held_tables(
    asked: nn.Module | Sequence[Table], keep: str | Collection[str] | None, widths: Widths | None = None
) -> list[Held]:
    """The tables of a model, or those given, with what must stay as it is.

    Args:
        asked: a model or tables.
        keep: glob patterns of tables that stay as they are.
        widths: which widths rows may have; None for "fbgemm" where a torchrec collection is not on the CPU.

    Raises:
        TypeError: neither a model nor tables, patterns that are no texts.
        ValueError: no table; two of one name; a pattern that matches none.
    """
    if isinstance(asked, nn.Module):
        held = [table for holder in plain_holders(asked) for table in _of(asked, holder, widths)]
    else:
        held = [Held(table, [table.name], widths=widths or "any") for table in tables_of(asked)]
    if not held:
        raise ValueError("the model has no embedding table that compress_ knows" if asked else "tables: got none")
    names = [table.name for table in held]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"tables must have different names, got {twice!r} twice")
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


def matches(held: Held, pattern: str) -> bool:
    """Whether a glob pattern matches a name of the table."""
    return fits(pattern, held.names)


def by_name(held: Sequence[Held], given: Mapping[str, object] | None, what: str) -> dict[str, object]:
    """Values by the name of the table that each is of.

    Raises:
        ValueError: a name that no table bears.
    """
    result: dict[str, object] = {}
    for name, value in (given or {}).items():
        owners = [table for table in held if name in table.names]
        if not owners:
            raise ValueError(f"{what} names {name!r}, which is not a table; these are {[table.name for table in held]}")
        result |= {owner.name: value for owner in owners}
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
    """What forbids to swap a module, or nothing."""
    try:
        holder.check(dict.fromkeys(holder.tables, Full()))
        check_not_held(model, [holder])
    except ValueError as error:
        return str(error)
    return ""
