"""`save` and `load`: a model with compressed tables in one safetensors file that describes how the tables are made.

A state dict alone fits only a model whose tables were compressed by the same call. The file also holds the plan of the
tables: when it is loaded into a model as its class builds it, the full tables are first swapped for compressed ones.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from glob import escape
from typing import Any

from torch import Tensor, nn

from embcomp import artifact, configs
from embcomp.compress import compress_
from embcomp.files import StrPath
from embcomp.holders import HeldStore, holders, join
from embcomp.methods.base import TablePlan
from embcomp.methods.planned import Planned
from embcomp.notes import CompressionWarning
from embcomp.swaps import plain_holders

KIND = "model"


@dataclass(frozen=True)
class _Saved:
    """A compressed table of a model.

    Attributes:
        module: the path of its module.
        name: the name that `compress_` uses: the path, or the table's name in a torchrec collection.
        plan: the plan by which its ids become vectors.
        stores: its stores by name.
    """

    module: str
    name: str
    plan: TablePlan
    stores: Mapping[str, HeldStore]


def save(model: nn.Module, path: StrPath, *, only_tables: bool = False) -> None:
    """Write a model's weights and the plan of its compressed tables as one safetensors file, with a checksum.

    Any reader of safetensors opens it. Large values of a configuration (counts, clusters, codes) are not written, only
    what the tables keep of them, so the file is about as large as the model.

    Args:
        model: the model, on any device, in one process.
        path: the file, which is written whole or not at all.
        only_tables: True to write nothing but the compressed tables.

    Raises:
        ValueError: a module is sharded or wrapped for several processes (see `embcomp.checkpoints` for these), a part
            of the state is not a tensor, or `only_tables` is set and no table is compressed.
        OSError: the file cannot be written.

    Example:
        >>> import torch, embcomp
        >>> model = torch.nn.ModuleDict({"item": torch.nn.Embedding(1000, 8)})
        >>> report = embcomp.compress_(model, embcomp.DoubleHash(rows=50))
        >>> embcomp.save(model, "ranker.safetensors")
    """
    tables = list(_tables(model))
    state = model.state_dict()
    if only_tables:
        if not tables:
            raise ValueError("only_tables=True, but no table of the model is compressed")
        state = {key: value for key, value in state.items() if _inside(key, {table.module for table in tables})}
    tensors: dict[str, Tensor] = {}
    keep = configs.keeper(tensors)
    header: dict[str, Any] = {
        "only_tables": only_tables,
        "methods": {table.name: table.plan.encoder.config for table in tables},
        "state": {key: keep(_tensor(key, value), key) for key, value in state.items()},
        "frozen": [name for name, each in model.named_parameters() if not each.requires_grad and not _by_engine(each)],
        "groups": [_written(group, tensors) for group in _groups(tables)],
    }
    if rows := [name for name, each in model.named_parameters() if getattr(each, "frozen", False)]:
        header["frozen_rows"] = rows
    artifact.save(path, KIND, header, tensors)


def load(model: nn.Module, path: StrPath) -> nn.Module:
    """Load a file that `save` wrote into a model of the same class; full tables are first swapped for compressed ones.

    Make the optimizer afterwards.

    Args:
        model: the model as its class builds it, or compressed as the saved one was; unchanged if an error is raised.
        path: the file.

    Returns:
        The model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, was edited or is of another model, or a table cannot be swapped.

    Example:
        >>> import torch, embcomp
        >>> build = lambda: torch.nn.ModuleDict({"item": torch.nn.Embedding(1000, 8), "out": torch.nn.Linear(8, 1)})
        >>> model = build()
        >>> report = embcomp.compress_(model, {"item": embcomp.DoubleHash(rows=50)})
        >>> embcomp.save(model, "ranker.safetensors")
        >>> again = embcomp.load(build(), "ranker.safetensors")
        >>> torch.equal(again["item"](torch.arange(9)), model["item"](torch.arange(9)))
        True
    """
    header, tensors = artifact.load(path, KIND)
    state = {key: tensors[name] for key, name in header["state"].items()}
    methods, weights, swapped = _methods(model, header, tensors, path)
    _check_rest(model, state, swapped, header["only_tables"], path)
    if methods:
        trained = [weight for weight in weights if weight.requires_grad]
        for weight in weights:
            weight.requires_grad_(True)  # a frozen table is not to be redrawn; this one is to be loaded
        try:
            with warnings.catch_warnings():  # of what was chosen when the model was compressed
                warnings.simplefilter("ignore", CompressionWarning)
                compress_(model, methods)
        except BaseException:
            for weight in weights:
                weight.requires_grad_(any(weight is other for other in trained))
            raise
    on_meta = any(tensor.is_meta for tensor in model.state_dict().values() if isinstance(tensor, Tensor))
    model.load_state_dict(state, strict=not header["only_tables"], assign=on_meta)
    rows = set(header.get("frozen_rows", ()))
    frozen = rows | set(header["frozen"])
    for name, parameter in model.named_parameters():
        if _inside(name, swapped):  # earlier versions listed all rows that an engine trains
            parameter.requires_grad_(name not in (rows if _by_engine(parameter) else frozen))
    return model


def _by_engine(parameter: nn.Parameter) -> bool:
    """Return whether an engine trains a parameter (`FusedWeight`), whose `requires_grad` then says nothing."""
    return hasattr(parameter, "frozen")


def _tables(model: nn.Module) -> Iterator[_Saved]:
    remedy = "save it by embcomp.checkpoints, and load that in one process"
    for holder in holders(model, if_wrapped="save its .module", if_sharded=remedy):
        for held in holder.tables.values():
            if held.plan is not None:
                yield _Saved(holder.paths[0], held.names[0], held.plan, held.stores)


def _groups(tables: list[_Saved]) -> list[list[_Saved]]:
    """The tables grouped by the stores that they share."""
    groups: list[tuple[set[int], list[_Saved]]] = []
    for table in tables:
        read = {id(store.weight) for store in table.stores.values()}
        joined = [group for group in groups if group[0] & read]
        groups = [group for group in groups if not group[0] & read]
        groups.append((read.union(*(g[0] for g in joined)), [*(t for g in joined for t in g[1]), table]))
    return [members for _, members in groups]


def _written(group: list[_Saved], tensors: dict[str, Tensor]) -> dict[str, Any]:
    stores = {name: held.store for table in group for name, held in table.stores.items()}
    return {
        "modules": {table.name: table.module for table in group},
        "stores": configs.to_json(stores, tensors),
        "tables": {table.name: configs.to_json(table.plan, tensors) for table in group},
    }


def _methods(
    model: nn.Module,
    header: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    path: StrPath,
) -> tuple[dict[str, Planned], list[Tensor], set[str]]:
    """The plan of each table that is still full, for `compress_`, its weight, and the paths of its module."""
    plain = {
        name: (holder, held)
        for holder in plain_holders(model)
        for held in holder.tables.values()
        for name in held.names
    }
    methods: dict[str, Planned] = {}
    weights, swapped = [], set[str]()
    for group in header["groups"]:
        missing = []
        for name, module in group["modules"].items():
            key = name if name == module else join(module, name)
            saved = group["tables"][name]["table"]
            if key not in plain:
                missing.append(key)
                continue
            holder, held = plain[key]
            here = held.table
            if (here.num_embeddings, here.embedding_dim) != (saved["num_embeddings"], saved["embedding_dim"]):
                raise ValueError(
                    f"{path}: table {key!r} was saved with {saved['num_embeddings']} ids and {saved['embedding_dim']} "
                    f"columns, but the model has {here.num_embeddings} and {here.embedding_dim}"
                )
            weights.append(held.weight)
            read = [name.partition(".table.")[0] for name in header["state"] if ".table." in name]
            if not header["only_tables"] and (untied := [tied for tied in holder.tied if tied not in read]):
                raise ValueError(
                    f"{path}: {untied} hold the weight of table {key!r} in the model, but not in the saved one: build "
                    "it as that was"
                )
            swapped.update(holder.paths, holder.tied)
        compressed = [key for key in missing if _is_compressed(model, key)]
        if len(compressed) < len(missing) or (missing and len(missing) < len(group["modules"])):
            lacking = sorted(set(missing) - set(compressed))
            raise ValueError(
                f"{path}: holds the compressed tables {sorted(group['modules'])}, of which the model lacks {lacking}: "
                "build it as the saved one was"
                if lacking
                else f"{path}: tables {sorted(group['modules'])} share rows, but in the model only {compressed} are "
                "compressed: compress all of them alike, or none"
            )
        if not missing:
            stores = configs.from_json(group["stores"], tensors)
            planned = Planned(stores=stores, tables=group["tables"], tensors=tensors)
            for name, module in group["modules"].items():
                methods[escape(name if name == module else join(module, name))] = planned
    return methods, weights, swapped


def _is_compressed(model: nn.Module, key: str) -> bool:
    """Return whether this is a compressed table, or one of a compressed collection."""
    return any(key in held.names for h in holders(model) if h.form == "compressed" for held in h.tables.values())


def _check_rest(
    model: nn.Module, state: Mapping[str, Tensor], swapped: set[str], only_tables: bool, path: StrPath
) -> None:
    """Check that the state outside swapped tables has the model's names and shapes, before anything changes."""
    here = {key: value for key, value in model.state_dict().items() if not _inside(key, swapped)}
    there = {key: value for key, value in state.items() if not _inside(key, swapped)}
    lacking = [] if only_tables else [key for key in here if key not in there]
    unknown = [key for key in there if key not in here]
    if lacking or unknown:
        raise ValueError(
            f"{path} is of another model: it lacks {lacking[:5]}, and the model does not have its {unknown[:5]}"
        )
    for key, value in there.items():
        if not key.endswith("_extra_state") and value.shape != here[key].shape:
            raise ValueError(f"{path}: {key!r} was saved as {list(value.shape)}, the model has {list(here[key].shape)}")


def _inside(key: str, modules: set[str]) -> bool:
    return any(not module or key.startswith(f"{module}.") for module in modules)


def _tensor(key: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or type(value) not in (Tensor, nn.Parameter):
        raise ValueError(f"{key!r} of the state is of type {type(value).__name__}, which a file of tensors cannot hold")
    return value
