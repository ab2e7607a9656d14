"""A copy of a model in which tables are served: found, given a dtype each, and put in the place of the trained ones."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from embcomp.codecs.base import Codec
from embcomp.methods.base import Plan, Store, Table, TablePlan
from embcomp.methods.full import Full
from embcomp.nn.embedding import CompressedEmbedding
from embcomp.nn.embedding_bag import CompressedEmbeddingBag
from embcomp.nn.table import CompressedTable
from embcomp.serving.coded import serve_coded
from embcomp.serving.stores import DTYPES, Dtype, ServedStore, serve
from embcomp.walk import (
    compressed_collections,
    fused_tables,
    modules_with_tables,
    sharded_tensors,
    torchrec_collections,
)


@dataclass(frozen=True)
class TrainedTable:
    """A table of the model to serve.

    Attributes:
        names: what a pattern may match; reports use the first.
        table: its ids and width.
        method: the name of its method.
        rows: the weights of its stores, each once; other tables may read them too.
        encoder: ids -> rows; None for a table that was never compressed.
        out: the dtype of the vectors that the model gets.
        codecs: what codes the rows of a store, by id of its weights; stores of floats have none.
        combiner: what makes vectors of the rows; what it learns is served in floats.
    """

    names: list[str]
    table: Table
    method: str
    rows: list[Tensor]
    encoder: nn.Module | None
    out: torch.dtype
    codecs: Mapping[int, Codec] = field(default_factory=dict)
    combiner: nn.Module | None = None


@dataclass(frozen=True)
class Place:
    """A module that holds tables."""

    module: nn.Module
    tables: list[TrainedTable]


@dataclass(frozen=True)
class Served:
    """A model that serves, and what became of its tables.

    Attributes:
        stores: for each trained weight, by id, what serves its rows; weights that stay as they are have none.
    """

    model: nn.Module
    tables: list[TrainedTable]
    stores: dict[int, ServedStore] = field(default_factory=dict)


def find_tables(model: nn.Module) -> list[Place]:
    """Every module with tables, in the order of the model.

    Raises:
        ValueError: a module is wrapped or sharded for several processes, or a weight has no memory.
    """
    remedy = "build the model in one process, load the checkpoint there, and export that"
    places = []
    for module, paths in modules_with_tables(model, _holds_tables, if_wrapped="export its .module", if_sharded=remedy):
        tables = _tables(module, paths)
        for table in tables:
            _check_rows(table)
        places.append(Place(module, tables))
    return places


def _holds_tables(path: str, module: nn.Module) -> bool | None:
    collections = (*torchrec_collections(), *compressed_collections(), *fused_tables())
    return isinstance(module, (CompressedTable, nn.Embedding, nn.EmbeddingBag, *collections)) or None


def _tables(module: nn.Module, paths: list[str]) -> list[TrainedTable]:
    shown = [path or "embedding" for path in paths]  # the model itself may be a table
    if isinstance(module, CompressedTable):
        weights: list[Any] = [store.weight for store in module.stores]
        table, out = module.encoder.table, weights[0].dtype
        method, codecs = module.encoder.config["method"], {id(s.weight): s.codec for s in module.stores if s.codec}
        return [TrainedTable(shown, table, method, weights, module.encoder, out, codecs, module.combiner)]  # pyright: ignore
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        table = Table(shown[0], module.num_embeddings, module.embedding_dim)
        return [TrainedTable(shown, table, "Full", [module.weight], None, module.weight.dtype)]
    from embcomp.torchrec.serve import tables_of  # torchrec is imported already: its module is in the model

    return [
        TrainedTable(
            [name, *[f"{path}.{name}" for path in paths if path]],
            plan.table,
            method,
            rows,
            encoder,
            torch.float32,
            codecs,
            plan.combiner,
        )
        for name, plan, method, rows, encoder, codecs in tables_of(module)
    ]


def _check_rows(table: TrainedTable) -> None:
    for rows in table.rows:
        if isinstance(rows, sharded_tensors()):
            raise ValueError(f"table {table.names[0]!r} is sharded: gather it first, or load the checkpoint unsharded")
        if rows.is_meta:
            raise ValueError(
                f"table {table.names[0]!r} is on the meta device and holds nothing to serve: load its state"
            )


def choose(tables: list[TrainedTable], dtype: Dtype | Mapping[str, Dtype]) -> dict[int, Dtype]:
    """For each weight of floats, by id, its dtype; those of tables that no pattern matches are left out.

    Coded rows have no dtype: they are served in the bits in which they were trained, whatever patterns match them.

    Raises:
        ValueError: an unknown dtype, a pattern without a table or for coded tables alone, tables on one store that are
            to differ.
    """
    patterns: Mapping[str, Dtype] = dtype if isinstance(dtype, Mapping) else {"*": dtype}
    for pattern, wanted in patterns.items():
        if wanted not in DTYPES:
            raise ValueError(f"dtype of {pattern!r} must be one of {', '.join(DTYPES)}, got {wanted!r}")
        if pattern != "*" and not any(fnmatchcase(name, pattern) for table in tables for name in table.names):
            known = [table.names[0] for table in tables]
            raise ValueError(f"dtype: pattern {pattern!r} matches no table; the tables are {known}")
        matched = [table for table in tables if any(fnmatchcase(name, pattern) for name in table.names)]
        if pattern != "*" and all(len(table.codecs) == len({id(rows) for rows in table.rows}) for table in matched):
            raise ValueError(
                f"dtype: pattern {pattern!r} matches {[table.names[0] for table in matched]}, which are served in the "
                f"bits in which they were trained: leave the pattern out"
            )
    chosen: dict[int, tuple[Dtype | None, TrainedTable]] = {}
    for table in tables:
        mine: Dtype | None = next(
            (d for p, d in patterns.items() if any(fnmatchcase(name, p) for name in table.names)), None
        )
        for rows in table.rows:
            if id(rows) in table.codecs:
                continue
            theirs, other = chosen.setdefault(id(rows), (mine, table))
            if theirs != mine:
                raise ValueError(
                    f"tables {other.names[0]!r} ({theirs or 'left as it is'}) and {table.names[0]!r} "
                    f"({mine or 'left as it is'}) read the same rows: give both one dtype"
                )
    return {key: wanted for key, (wanted, _) in chosen.items() if wanted is not None}


def swap(model: nn.Module, dtype: Dtype | Mapping[str, Dtype]) -> Served:
    """A copy of the model, on the CPU and in evaluation mode, whose tables are served; the model does not change.

    Everything but the tables is copied; the rows are not, but for what serves them.

    Raises:
        ValueError: no table; what `find_tables`, `choose` and `embcomp.serving.stores.serve` refuse; a table whose
            module does more than look up.
    """
    places = find_tables(model)
    tables = [table for place in places for table in place.tables]
    if not tables:
        raise ValueError("the model has no embedding table to export")
    wanted = choose(tables, dtype)
    stores: dict[int, ServedStore] = {}
    for table in tables:
        for rows in table.rows:
            if id(rows) in table.codecs and id(rows) not in stores:
                stores[id(rows)] = serve_coded(rows.detach(), table.codecs[id(rows)], table.out, table.names[0])
            if id(rows) in wanted and id(rows) not in stores:
                stores[id(rows)] = serve(rows.detach(), wanted[id(rows)], table.out, table.names[0])
    memo: dict[int, Any] = {}
    for place in places:
        if not any(id(rows) in stores for table in place.tables for rows in table.rows):
            continue  # stays as it is
        if isinstance(place.module, CompressedTable):
            memo |= {id(store): stores[id(store.weight)] for store in place.module.stores}
        elif isinstance(place.module, nn.Embedding | nn.EmbeddingBag):
            memo[id(place.module)] = _drop_in(place.module, place.tables[0], stores)
        else:
            from embcomp.torchrec.serve import ServedCollection

            memo[id(place.module)] = ServedCollection(place.module, stores)
    copied = copy.deepcopy(model, memo).cpu().eval().requires_grad_(False)
    return Served(copied, tables, stores)


def _drop_in(
    module: nn.Embedding | nn.EmbeddingBag, table: TrainedTable, stores: Mapping[int, ServedStore]
) -> nn.Module:
    """A served form of torch's own module: the drop-in with `Full()` over its rows."""
    where = f"cannot export {table.names[0]!r}"
    remedy = "leave it out of the patterns of dtype, and it stays as it is"
    if type(module) not in (nn.Embedding, nn.EmbeddingBag):
        raise ValueError(f"{where}: {type(module).__name__} is a subclass with behaviour of its own; {remedy}")
    if module.max_norm is not None:
        raise ValueError(f"{where}: max_norm={module.max_norm} renormalises rows at each call; {remedy}")
    (part,) = Full().plan([table.table]).tables
    if isinstance(module, nn.Embedding):  # its padding row is looked up like any other
        return CompressedEmbedding.from_plan(*serving_plan(part, stores, table.rows))
    settings = {
        "padding_idx": module.padding_idx,
        "mode": module.mode,
        "include_last_offset": module.include_last_offset,
    }
    return CompressedEmbeddingBag.from_plan(*serving_plan(part, stores, table.rows), **settings)


def serving_plan(
    part: TablePlan, stores: Mapping[int, ServedStore], rows: list[Tensor]
) -> tuple[Plan, TablePlan, dict[str, Any]]:
    """What `from_plan` takes: the plan, the table's part of it, and by name the stores that serve its rows."""
    names = list(dict.fromkeys(chunk.store for chunk in part.chunks))
    served = {name: stores[id(weight)] for name, weight in zip(names, rows, strict=True)}
    plan = Plan({name: Store(store.rows, store.dim) for name, store in served.items()}, [part])
    return plan, part, served
