"""The places of a model that hold embedding tables, and what forbids swapping one."""

import abc
import weakref
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from embcomp.methods.base import Method, Table, TablePlan
from embcomp.methods.request import tables_of
from embcomp.nn.embedding import CompressedEmbedding
from embcomp.nn.embedding_bag import CompressedEmbeddingBag
from embcomp.nn.table import CompressedTable
from embcomp.nn.tied import TiedLinear
from embcomp.walk import (
    MOST,
    compressed_collections,
    contents,
    fused_tables,
    join,
    modules_with_tables,
    only_looks_up,
    sharded_tensors,
    torchrec_collections,
)

Stores = Mapping[str, Tensor]

_DEPTH = 5  # levels of a plain attribute that are searched for tables: itself, and four below


class Site(abc.ABC):
    """A module with tables, at one or several paths of the model.

    Attributes:
        module: the module to replace.
        paths: where it is, the first one in the order of the model first.
        tables: by name.
    """

    tables: dict[str, Table]

    def __init__(self, module: nn.Module, paths: list[str]) -> None:
        self.module, self.paths = module, paths

    @abc.abstractmethod
    def names(self, table: str) -> list[str]:
        """What a pattern may match for this table."""

    @abc.abstractmethod
    def weight(self, table: str) -> Tensor:
        """The trained vectors, [num_embeddings, embedding_dim]."""

    @abc.abstractmethod
    def check(self, methods: Mapping[str, Method]) -> None:
        """Raises ValueError for settings that no compressed table can keep."""

    @property
    def held(self) -> list[nn.Module]:
        """All modules that the swap replaces."""
        return [self.module]

    def put(self, model: nn.Module, replacement: nn.Module) -> None:
        """Swaps the module at all its paths, and what is tied to it."""
        put(model, self.paths, replacement)


class TorchSite(Site):
    """An `nn.Embedding` or `nn.EmbeddingBag`, with what is tied to it.

    Attributes:
        twins: other modules of the same settings that hold the same weight; the swap makes one module of them.
        heads: output layers (`nn.Linear`) that hold the same weight, and their paths.
    """

    module: nn.Embedding | nn.EmbeddingBag

    def __init__(self, module: nn.Embedding | nn.EmbeddingBag, paths: list[str]) -> None:
        super().__init__(module, paths)
        self.twins: list[nn.Module] = []
        self.heads: dict[nn.Linear, list[str]] = {}
        self.tables = {paths[0]: Table(paths[0], module.num_embeddings, module.embedding_dim)}

    def names(self, table: str) -> list[str]:
        return self.paths

    def weight(self, table: str) -> Tensor:
        return self.module.weight

    @property
    def held(self) -> list[nn.Module]:
        return [self.module, *self.twins, *self.heads]

    def put(self, model: nn.Module, replacement: nn.Module) -> None:
        super().put(model, replacement)
        assert isinstance(replacement, CompressedTable)
        for head, paths in self.heads.items():
            layer = TiedLinear(replacement, head._parameters["bias"]).train(head.training)
            for name, value in vars(head).items():  # what libraries mark their modules with
                if name not in vars(layer):
                    setattr(layer, name, value)
            put(model, paths, layer)

    def check(self, methods: Mapping[str, Method]) -> None:
        for module in (self.module, *self.twins):
            self._check(module)

    def _check(self, module: Any) -> None:
        where = f"cannot compress {self.paths[0]!r}"
        if not only_looks_up(type(module)):
            raise ValueError(f"{where}: {type(module).__name__} is a subclass; exclude it with embcomp.Full()")
        if module.max_norm is not None:
            raise ValueError(f"{where}: max_norm={module.max_norm} renormalises rows in place; set it to None first")
        if module.scale_grad_by_freq:
            raise ValueError(f"{where}: scale_grad_by_freq counts ids, which rows do not know; set it to False first")
        if _hooked(module):
            raise ValueError(f"{where}: it has hooks, which would be lost; remove them, and set them again afterwards")
        if "forward" in vars(module):
            raise ValueError(f"{where}: its forward was replaced, which would be lost; exclude it with embcomp.Full()")

    def replacement(self, method: Method, plan: Any, part: TablePlan, stores: Any) -> nn.Module:
        """The compressed module with the settings of this one."""
        old, width = self.module, plan.embedding_dim(part)
        if width != old.embedding_dim:
            raise ValueError(
                f"cannot compress {self.paths[0]!r}: {type(method).__name__} would change its width from "
                f"{old.embedding_dim} to {width}, and the model expects the former"
            )
        settings: dict[str, Any] = {"padding_idx": old.padding_idx, "sparse": old.sparse}
        settings["padding_vector"] = _padding_vector(old)
        if isinstance(old, nn.EmbeddingBag):
            bag = {"mode": old.mode, "include_last_offset": old.include_last_offset}
            new: CompressedTable = CompressedEmbeddingBag.from_plan(plan, part, stores, **settings, **bag)
        else:
            new = CompressedEmbedding.from_plan(plan, part, stores, **settings)
        return new.train(old.training)


def put(model: nn.Module, paths: Sequence[str], module: nn.Module) -> None:
    """Puts a module at several places of the model."""
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, module)


def _hooked(module: Any) -> bool:
    """Whether it or its weight has hooks."""
    hooks: list[Any] = [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks]
    hooks += [module._backward_pre_hooks, module.weight._backward_hooks]
    hooks += [getattr(module.weight, "_post_accumulate_grad_hooks", None)]
    return any(hooks)


def _padding_vector(module: nn.Embedding | nn.EmbeddingBag) -> Tensor | None:
    """The vector at `padding_idx`, or None where it is zero or not known."""
    if module.padding_idx is None or module.weight.is_meta:
        return None
    vector = module.weight.detach()[module.padding_idx].clone()
    return vector if bool(vector.any()) else None


def find_sites(model: nn.Module) -> list[Site]:
    """All sites of a model, in its order. Modules that are compressed already are passed over.

    Raises:
        ValueError: the model itself is a table, or it holds tables that are sharded or wrapped for several processes.
    """
    found = modules_with_tables(
        model, _is_site, if_wrapped="compress before wrapping", if_sharded="compress before sharding"
    )
    sites: list[Site] = []
    for module, paths in found:
        if "" in paths:
            raise ValueError(
                "compress_ swaps tables inside a model; to replace a single table, build the drop-in itself"
            )
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            sites.append(TorchSite(module, paths))
        else:
            from embcomp.torchrec.site import TorchrecSite  # torchrec is imported already: its module is in the model

            sites.append(TorchrecSite(module, paths))
    return _with_tied(model, sites)


def _with_tied(model: nn.Module, sites: Sequence[Site]) -> list[Site]:
    """The sites, modules that hold one weight and do the same with it as one; with the output layers tied to them."""
    by_weight: dict[int, TorchSite] = {}
    kept: list[Site] = []
    for site in sites:
        weight = site.module._parameters.get("weight") if isinstance(site, TorchSite) else None
        if isinstance(site, TorchSite) and weight is not None:
            first = by_weight.setdefault(id(weight), site)
            if first is not site and _settings(first.module) == _settings(site.module):
                first.twins.append(site.module)
                first.paths.extend(site.paths)
                continue
        kept.append(site)
    for path, layer in model.named_modules(remove_duplicate=False):
        if type(layer) is nn.Linear and id(layer.weight) in by_weight:
            site = by_weight[id(layer.weight)]
            same = (layer.out_features, layer.in_features) == (site.module.num_embeddings, site.module.embedding_dim)
            if same and not _hooked(layer) and "forward" not in vars(layer):
                site.heads.setdefault(layer, []).append(path)
    return kept


def _settings(module: nn.Embedding | nn.EmbeddingBag) -> tuple[Any, ...]:
    names = ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    more = ("mode", "include_last_offset", "training")
    return type(module), *(getattr(module, name, None) for name in (*names, *more))


@tables_of.register
def _(model: nn.Module) -> list[Table]:
    """All that `compress_` may swap."""
    tables = [table for site in find_sites(model) for table in site.tables.values()]
    if not tables:
        raise ValueError("tables: the model has no embedding table that compress_ knows")
    return tables


def _is_site(path: str, module: nn.Module) -> bool | None:
    if isinstance(module, (CompressedTable, *compressed_collections())):
        return False
    if isinstance(module, fused_tables()):
        raise ValueError(f"{path or 'the model'!r} trains inside the backward pass already: compress before fuse_")
    return isinstance(module, nn.Embedding | nn.EmbeddingBag) or type(module) in torchrec_collections() or None


def check_not_held(
    model: nn.Module, sites: Sequence[Site], handed_over: Collection[tuple[nn.Module, str]] = ()
) -> None:
    """Raises ValueError where the model keeps a table, or its weight, in a second place that a swap would not reach.

    Args:
        model: the model.
        sites: the tables to swap.
        handed_over: attributes that hold weights and will be given the new ones.
    """
    owned: dict[Any, str] = {}  # by id of a module or tensor, and by address of a weight
    inside: set[int] = set()
    for site in sites:
        for part in (part for module in site.held for part in module.modules()):
            owned[id(part)] = site.paths[0]
            inside.add(id(part))
            for weight in part.parameters(recurse=False) if part in site.module.modules() else ():
                if isinstance(weight, sharded_tensors()):
                    raise ValueError(
                        f"cannot compress {site.paths[0]!r}: its weight is sharded; compress before sharding"
                    )
                other = _owner(weight, owned)
                if other:
                    raise ValueError(
                        f"cannot compress {site.paths[0]!r}: it shares its weight with {other!r}; use one module in "
                        "both places, or exclude both tables with embcomp.Full()"
                    )
                owned[id(weight)] = owned[_address(weight)] = site.paths[0]
    reached = {module for module in model.modules() if id(module) not in inside}
    for path, module in model.named_modules():
        if id(module) in inside:
            continue
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            table = tensor is not None and _owner(tensor, owned)
            if table:
                raise ValueError(
                    f"cannot compress {table!r}: its weight is also {join(path, name)!r}; untie it, use "
                    f"`materialize()` in its place, or exclude the table with embcomp.Full()"
                )
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules") or (module, name) in handed_over:
                continue
            held = _held(value, owned, reached)
            if held:
                raise ValueError(
                    f"cannot compress {held!r}: {join(path, name)!r} keeps it (or its weight) outside the module "
                    "tree, and would go on using the old one; clear it, or exclude the table with embcomp.Full()"
                )


def _address(tensor: Tensor) -> Any:
    """What tensors over the same memory have in common; nothing, where there is no memory to share."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_meta:
        return id(tensor)
    return (tensor.device, tensor.data_ptr()) if tensor.numel() else id(tensor)


def _owner(tensor: Tensor, owned: Mapping[Any, str]) -> str | None:
    return owned.get(id(tensor)) or owned.get(_address(tensor))


def _held(value: Any, owned: Mapping[Any, str], reached: set[nn.Module]) -> str | None:
    """The table that a plain attribute holds: itself, or inside modules, containers and functions.

    Plain objects are not opened: libraries describe features in them, beside the module that these were made into.
    Nearest things first, so that the bounds cut off what is far away or plenty: data, not tables.
    """
    seen: dict[int, Any] = {}  # what was looked at, kept alive so that no id is used twice
    level = [value]
    for _ in range(_DEPTH):
        below: list[Any] = []
        for item in level:
            if id(item) in seen or type(item) in weakref.ProxyTypes:
                continue
            seen[id(item)] = item
            table = _table(item, owned, reached)
            if table:
                return table
            if len(seen) + len(below) < MOST:
                below += contents(item)
        level = below
    return None


def _table(item: Any, owned: Mapping[Any, str], reached: set[nn.Module]) -> str | None:
    """The table that this is, or that a module outside the module tree is made of."""
    if isinstance(item, Tensor):
        return _owner(item, owned)
    if not isinstance(item, nn.Module) or item in reached:  # the swap reaches what is inside
        return None
    for _, part in item.named_modules(memo=set(reached)):
        tensors = (*part.parameters(recurse=False), *part.buffers(recurse=False))
        table = owned.get(id(part)) or next(filter(None, (_owner(tensor, owned) for tensor in tensors)), None)
        if table:
            return table
    return None
