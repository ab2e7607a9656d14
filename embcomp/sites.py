"""The places of a model that hold embedding tables, and what forbids swapping one."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from embcomp.methods.base import Method, Table, TablePlan
from embcomp.nn.embedding import CompressedEmbedding
from embcomp.nn.embedding_bag import CompressedEmbeddingBag
from embcomp.nn.table import CompressedTable
from embcomp.walk import compressed_collections, fused_tables, join, modules_with_tables, torchrec_collections

Stores = Mapping[str, Tensor]


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

    def put(self, model: nn.Module, replacement: nn.Module) -> None:
        """Swaps the module at all its paths."""
        for path in self.paths:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, replacement)


class TorchSite(Site):
    """An `nn.Embedding` or `nn.EmbeddingBag`."""

    module: nn.Embedding | nn.EmbeddingBag

    def __init__(self, module: nn.Embedding | nn.EmbeddingBag, paths: list[str]) -> None:
        super().__init__(module, paths)
        self.tables = {paths[0]: Table(paths[0], module.num_embeddings, module.embedding_dim)}

    def names(self, table: str) -> list[str]:
        return self.paths

    def weight(self, table: str) -> Tensor:
        return self.module.weight

    def check(self, methods: Mapping[str, Method]) -> None:
        module, where = self.module, f"cannot compress {self.paths[0]!r}"
        if type(module) not in (nn.Embedding, nn.EmbeddingBag):
            raise ValueError(f"{where}: {type(module).__name__} is a subclass; exclude it with embcomp.Full()")
        if module.max_norm is not None:
            raise ValueError(f"{where}: max_norm={module.max_norm} renormalises rows in place; set it to None first")
        if module.scale_grad_by_freq:
            raise ValueError(f"{where}: scale_grad_by_freq counts ids, which rows do not know; set it to False first")
        hooks: list[Any] = [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks]
        hooks += [module._backward_pre_hooks, module.weight._backward_hooks]
        hooks += [getattr(module.weight, "_post_accumulate_grad_hooks", None)]
        if any(hooks):
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
        if isinstance(old, nn.EmbeddingBag):
            bag = {"mode": old.mode, "include_last_offset": old.include_last_offset}
            new: CompressedTable = CompressedEmbeddingBag.from_plan(plan, part, stores, **settings, **bag)
        else:
            new = CompressedEmbedding.from_plan(plan, part, stores, **settings)
        return new.train(old.training)


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
    return sites


def _is_site(path: str, module: nn.Module) -> bool | None:
    if isinstance(module, (CompressedTable, *compressed_collections())):
        return False
    if isinstance(module, fused_tables()):
        raise ValueError(f"{path or 'the model'!r} trains inside the backward pass already: compress before fuse_")
    return isinstance(module, nn.Embedding | nn.EmbeddingBag) or type(module) in torchrec_collections() or None


def check_not_held(model: nn.Module, sites: Sequence[Site]) -> None:
    """Raises ValueError where the model keeps a table, or its weight, in a second place that a swap would not reach."""
    owned: dict[Any, str] = {}  # by id of a module or tensor, and by address of a weight
    inside: set[int] = set()
    for site in sites:
        for part in site.module.modules():
            owned[id(part)] = site.paths[0]
            inside.add(id(part))
            for weight in part.parameters(recurse=False):
                if isinstance(weight, DTensor):
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
    registered = {id(module) for module in model.modules()}
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
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            held = _held(value, owned, registered)
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


def _held(value: Any, owned: Mapping[Any, str], registered: set[int], depth: int = 3) -> str | None:
    """The table that a plain attribute holds: itself, by a method of it, inside a module, lists or dictionaries."""
    value = getattr(value, "__self__", value)  # of a bound method
    if isinstance(value, Tensor):
        return _owner(value, owned)
    if isinstance(value, nn.Module):
        if id(value) in registered and id(value) not in owned:
            return None  # the swap reaches what is inside
        return next((table for part in value.modules() if (table := owned.get(id(part)))), None)
    if depth and isinstance(value, Mapping):
        value = list(value.values())
    if depth and isinstance(value, list | tuple | set):
        return next((table for item in value if (table := _held(item, owned, registered, depth - 1))), None)
    return None
