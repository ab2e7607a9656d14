"""A copy of a model with served tables: tables are found, given a dtype each, and replaced."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

from torch import Tensor, nn

from embcomp.holders import Held, Holder, holders, is_sharded
from embcomp.match import fits, match
from embcomp.methods.base import Plan, Store, TablePlan
from embcomp.methods.full import Full
from embcomp.nn.embedding import CompressedEmbedding
from embcomp.nn.embedding_bag import CompressedEmbeddingBag
from embcomp.nn.holders import CompressedHolder, TorchHolder, own_behavior
from embcomp.serving.coded import serve_coded
from embcomp.serving.finite import check_finite, learned
from embcomp.serving.stores import DTYPES, Dtype, ServedStore, serve


@dataclass(frozen=True)
class Served:
    """A model ready to serve, with its tables.

    Attributes:
        stores: the served store of each trained weight, by the weight's id; weights that are not quantised have none.
    """

    model: nn.Module
    tables: list[Held]
    stores: dict[int, ServedStore] = field(default_factory=dict)


def find_tables(model: nn.Module) -> list[Holder]:
    """Find every module with tables, in the order of the model.

    Raises:
        ValueError: a module is wrapped or sharded for several processes, or a weight is on the meta device.
    """
    remedy = "build the model in one process, load the checkpoint there, and export that"
    table_holders = holders(model, if_wrapped="export its .module", if_sharded=remedy)
    for holder in table_holders:
        for table in holder.tables.values():
            _check_rows(table)
    return table_holders


def names_of(table: Held) -> list[str]:
    """Return the names that a pattern may match, the one for reports first; a model may itself be a table."""
    return [name or "embedding" for name in table.names]


def _check_rows(table: Held) -> None:
    name = names_of(table)[0]
    for rows in table.rows:
        if is_sharded(rows):
            raise ValueError(f"table {name!r} is sharded: gather it first, or load the checkpoint unsharded")
        if rows.is_meta:
            raise ValueError(f"table {name!r} is on the meta device and holds no values to serve: load its state")


def choose(tables: Sequence[Held], dtype: Dtype | Mapping[str, Dtype]) -> dict[int, Dtype]:
    """Choose the dtype of each weight of floats, by id; weights of tables that no pattern matches are left out.

    Coded rows have no dtype: they are served in the bits in which they were trained, whichever patterns match.

    Raises:
        ValueError: a dtype is unknown, a pattern matches no table or only coded tables, or tables on one store would
            differ.
    """
    patterns: Mapping[str, Dtype] = dtype if isinstance(dtype, Mapping) else {"*": dtype}
    for pattern, wanted in patterns.items():
        if wanted not in DTYPES:
            raise ValueError(f"dtype of {pattern!r} must be one of {', '.join(DTYPES)}, got {wanted!r}")
    matched = match(patterns, [names_of(table) for table in tables], "dtype")
    for pattern in patterns:
        own = [table for table in tables if fits(pattern, names_of(table))]
        if pattern != "*" and all(store.codec is not None for table in own for store in table.stores.values()):
            raise ValueError(
                f"dtype: pattern {pattern!r} matches {[names_of(table)[0] for table in own]}, which are served in the "
                f"bits in which they were trained: leave the pattern out"
            )
    chosen: dict[int, tuple[Dtype | None, Held]] = {}
    for table, mine in zip(tables, matched, strict=True):
        for store in table.stores.values():
            if store.codec is not None:
                continue
            theirs, other = chosen.setdefault(id(store.weight), (mine, table))
            if theirs != mine:
                raise ValueError(
                    f"tables {names_of(other)[0]!r} ({theirs or 'left as it is'}) and {names_of(table)[0]!r} "
                    f"({mine or 'left as it is'}) read the same rows: give both one dtype"
                )
    return {key: wanted for key, (wanted, _) in chosen.items() if wanted is not None}


@singledispatch
def served_form(holder: Any, stores: Mapping[int, ServedStore]) -> dict[int, Any]:
    """Return the replacements of a holder's parts in a served copy of the model, by id of the part.

    Each kind of holder registers its own.

    Args:
        holder: the module with tables, one of whose weights is served.
        stores: the served store of each weight, by the weight's id; other weights stay.

    Raises:
        ValueError: the module does more than look up.
    """
    raise NotImplementedError(type(holder).__name__)


def swap(model: nn.Module, dtype: Dtype | Mapping[str, Dtype]) -> Served:
    """Copy the model to the CPU, in evaluation mode, with served tables; the model does not change.

    Everything but the tables is copied; of the rows only the served form is made.

    Raises:
        ValueError: there is no table; `find_tables`, `choose` or `embcomp.serving.stores.serve` refuse one; a number
            that a table decodes with is not finite; or the module of a table does more than look up.
    """
    table_holders = find_tables(model)
    tables = [table for holder in table_holders for table in holder.tables.values()]
    if not tables:
        raise ValueError("the model has no embedding table to export")
    wanted = choose(tables, dtype)
    stores: dict[int, ServedStore] = {}
    for table in tables:
        for store in table.stores.values():
            rows, name = store.weight, names_of(table)[0]
            if store.codec is not None and id(rows) not in stores:
                stores[id(rows)] = serve_coded(rows.detach(), store.codec, table.dtype, name)
            if id(rows) in wanted and id(rows) not in stores:
                stores[id(rows)] = serve(rows.detach(), wanted[id(rows)], table.dtype, name)
        for parameter, value in learned(table):
            check_finite(names_of(table)[0], parameter, value.detach())
    memo: dict[int, Any] = {}
    for holder in table_holders:
        if any(id(rows) in stores for table in holder.tables.values() for rows in table.rows):  # else it stays
            memo |= served_form(holder, stores)
    copied = copy.deepcopy(model, memo).cpu().eval().requires_grad_(False)
    return Served(copied, tables, stores)


@served_form.register
def _(holder: CompressedHolder, stores: Mapping[int, ServedStore]) -> dict[int, Any]:
    return {id(store): stores[id(store.weight)] for store in holder.module.stores}


@served_form.register
def _(holder: TorchHolder, stores: Mapping[int, ServedStore]) -> dict[int, Any]:
    """Replace the module by the drop-in with `Full()` over its rows."""
    module, (table,) = holder.module, holder.tables.values()
    where = f"cannot export {names_of(table)[0]!r}"
    remedy = "leave it out of the patterns of dtype, and it stays as it is"
    if own := own_behavior(type(module)):
        raise ValueError(f"{where}: {type(module).__name__} is a subclass with its own {', '.join(own)}; {remedy}")
    if module.max_norm is not None:
        raise ValueError(f"{where}: max_norm={module.max_norm} renormalises rows at each call; {remedy}")
    (part,) = Full().plan([table.table]).tables
    if isinstance(module, nn.Embedding):  # its padding row is looked up like any other
        return {id(module): CompressedEmbedding.from_plan(*serving_plan(part, stores, table.rows))}
    settings = {
        "padding_idx": module.padding_idx,
        "mode": module.mode,
        "include_last_offset": module.include_last_offset,
    }
    return {id(module): CompressedEmbeddingBag.from_plan(*serving_plan(part, stores, table.rows), **settings)}


def serving_plan(
    part: TablePlan, stores: Mapping[int, ServedStore], rows: list[Tensor]
) -> tuple[Plan, TablePlan, dict[str, Any]]:
    """Return the arguments of `from_plan`: the plan, the table's part of it, and its served stores by name."""
    names = list(dict.fromkeys(chunk.store for chunk in part.chunks))
    served = {name: stores[id(weight)] for name, weight in zip(names, rows, strict=True)}
    plan = Plan({name: Store(store.rows, store.dim) for name, store in served.items()}, [part])
    return plan, part, served
