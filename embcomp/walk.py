"""Modules of a model that hold tables, for `compress_` and `export`, and what neither takes apart."""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

MOST = 10_000  # things: what holds more is data

Visit = Callable[[str, nn.Module], bool | None]
"""(path, module) -> True: it is one; False: nor is anything inside it; None: look inside."""


def modules_with_tables(
    model: nn.Module, visit: Visit, *, if_wrapped: str, if_sharded: str
) -> list[tuple[nn.Module, list[str]]]:
    """The modules that `visit` chooses, in the order of the model, each once with all its paths.

    Raises:
        ValueError: a module is wrapped or sharded for several processes; `if_wrapped` and `if_sharded` say what to do.
    """
    found: dict[int, tuple[nn.Module, list[str]]] = {}
    for path, module in _walk(model, "", visit, if_wrapped, if_sharded):
        found.setdefault(id(module), (module, []))[1].append(path)
    return list(found.values())


def _walk(
    module: nn.Module, path: str, visit: Visit, if_wrapped: str, if_sharded: str
) -> Iterator[tuple[str, nn.Module]]:
    kind = type(module)
    if isinstance(module, DistributedDataParallel):
        raise ValueError(f"{path or 'the model'!r} is wrapped in DistributedDataParallel: {if_wrapped}")
    if kind.__name__.startswith(("Sharded", "DistributedModelParallel")) and kind.__module__.startswith("torchrec."):
        raise ValueError(f"{path or 'the model'!r} ({kind.__name__}) is sharded: {if_sharded}")
    chosen = visit(path, module)
    if chosen:
        yield path, module
    elif chosen is None:
        for name, child in module._modules.items():
            if child is not None:
                yield from _walk(child, join(path, name), visit, if_wrapped, if_sharded)


def join(path: str, name: str) -> str:
    """The path of a part; either may be empty."""
    return ".".join(filter(None, (path, name)))


def loaded(module: str, *names: str) -> tuple[type, ...]:
    """Classes of a module that is slow to import or needs an extra; none where nobody imported it: no model has one."""
    return tuple(getattr(sys.modules[module], name) for name in names) if module in sys.modules else ()


def sharded_tensors() -> tuple[type, ...]:
    """The class DTensor, not imported for the question: its import takes longer than that of all embcomp."""
    return loaded("torch.distributed.tensor", "DTensor")


def torchrec_collections() -> tuple[type, ...]:
    """Those of torchrec itself."""
    return loaded("torchrec.modules.embedding_modules", "EmbeddingBagCollection", "EmbeddingCollection")


def compressed_collections() -> tuple[type, ...]:
    """Those of embcomp over those of torchrec."""
    names = ("CompressedEmbeddingBagCollection", "CompressedEmbeddingCollection")
    return loaded("embcomp.torchrec.collections", *names)


def fused_tables() -> tuple[type, ...]:
    """What `fuse_` puts in the place of torchrec's."""
    return loaded("embcomp.torchrec.fused", "FusedTables")


def contents(item: Any) -> Collection[Any]:
    """What a container or a function keeps; nothing of large containers."""
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


def only_looks_up(kind: type[nn.Module]) -> bool:
    """Whether modules of this class do what `nn.Embedding` or `nn.EmbeddingBag` does: subclasses may draw rows anew."""
    if not issubclass(kind, nn.Embedding | nn.EmbeddingBag):
        return False
    bases = [base for base in kind.__mro__ if issubclass(base, nn.Embedding | nn.EmbeddingBag)]
    own = [name for base in bases if base not in (nn.Embedding, nn.EmbeddingBag) for name in vars(base)]
    described = ("__annotations__", "__firstlineno__", "__static_attributes__", "__parameters__", "__orig_bases__")
    return set(own) <= {"reset_parameters", "__module__", "__doc__", *described}
