"""A search for second places where a model keeps a table, which a swap would not reach: attributes, containers."""

import weakref
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from embcomp.holders import is_sharded, join
from embcomp.swaps import Plain

MOST = 10_000  # things: what holds more is data
_DEPTH = 5  # levels of a plain attribute that are searched for tables: itself, and four below


def check_not_held(
    model: nn.Module, holders: Sequence[Plain], handed_over: Collection[tuple[nn.Module, str]] = ()
) -> None:
    """Raise ValueError if the model keeps a table, or its weight, in a second place that a swap would not reach.

    Args:
        model: the model.
        holders: the tables to swap.
        handed_over: the attributes that hold weights and will be given the new ones.
    """
    owned: dict[Any, str] = {}  # by id of a module or tensor, and by address of a weight
    inside: set[int] = set()
    for holder in holders:
        for submodule in (submodule for module in holder.held for submodule in module.modules()):
            owned[id(submodule)] = holder.paths[0]
            inside.add(id(submodule))
            for weight in submodule.parameters(recurse=False) if submodule in holder.module.modules() else ():
                if is_sharded(weight):
                    raise ValueError(
                        f"cannot compress {holder.paths[0]!r}: its weight is sharded; compress before sharding"
                    )
                other = _owner(weight, owned)
                if other:
                    raise ValueError(
                        f"cannot compress {holder.paths[0]!r}: it shares its weight with {other!r}; use one module in "
                        "both places, or exclude both tables with embcomp.Full()"
                    )
                owned[id(weight)] = owned[_address(weight)] = holder.paths[0]
    reached = {module for module in model.modules() if id(module) not in inside}
    for holder in holders:
        for name, value in holder.attributes.items():
            _check_attribute(value, join(holder.paths[0], name), owned, reached)
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
            compiled = module._modules.get("_orig_mod")  # what torch.compile returns keeps the module there
            if compiled is not None and id(compiled) in inside:
                raise ValueError(
                    f"cannot compress {owned[id(compiled)]!r}: it is compiled by torch.compile; compile it "
                    "after compress_, or the model around it at any time"
                )
            _check_attribute(value, join(path, name), owned, reached)


def _check_attribute(value: Any, path: str, owned: Mapping[Any, str], reached: set[nn.Module]) -> None:
    held = _held(value, owned, reached)
    if held:
        raise ValueError(
            f"cannot compress {held!r}: {path!r} keeps it (or its weight) outside the module tree, and would continue "
            "to use the old one; clear it, or exclude the table with embcomp.Full()"
        )


def _address(tensor: Tensor) -> Any:
    """The key shared by tensors over the same memory; unique for tensors without memory."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_meta:
        return id(tensor)
    return (tensor.device, tensor.data_ptr()) if tensor.numel() else id(tensor)


def _owner(tensor: Tensor, owned: Mapping[Any, str]) -> str | None:
    return owned.get(id(tensor)) or owned.get(_address(tensor))


def _held(value: Any, owned: Mapping[Any, str], reached: set[nn.Module]) -> str | None:
    """The table that a plain attribute holds, itself or inside modules, containers and functions.

    Plain objects are not opened, because libraries describe features in them. The search goes from near to far, so that
    its bounds cut off distant objects and large containers, which hold data and not tables.
    """
    # What was looked at, kept alive so that no id is used twice. Wrappers of compiled modules copy their attributes.
    seen: dict[int, Any] = {id(module._modules): module._modules for module in reached}
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
    """The table that this object is, or that a module outside the module tree is made of."""
    if isinstance(item, Tensor):
        return _owner(item, owned)
    if not isinstance(item, nn.Module) or item in reached:  # the swap reaches what is inside
        return None
    for _, submodule in item.named_modules(memo=set(reached)):
        tensors = (*submodule.parameters(recurse=False), *submodule.buffers(recurse=False))
        table = owned.get(id(submodule)) or next(filter(None, (_owner(tensor, owned) for tensor in tensors)), None)
        if table:
            return table
    return None


def contents(item: Any) -> Collection[Any]:
    """The objects to search next: items of a container, values that a function captured; none for large containers."""
    if isinstance(item, Mapping | list | tuple | set | frozenset):
        if len(item) > MOST:
            return ()
        return list(item.values()) if isinstance(item, Mapping) else item
    if isinstance(item, partial):
        return item.func, *item.args, *item.keywords.values()
    if isinstance(item, MethodType):
        return item.__self__, item.__func__
    if isinstance(item, FunctionType):
        filled = [cell for cell in item.__closure__ or () if cell != CellType()]
        given = (*(item.__defaults__ or ()), *(item.__kwdefaults__ or {}).values())
        return *(cell.cell_contents for cell in filled), *given, *vars(item).values()
    return ()
