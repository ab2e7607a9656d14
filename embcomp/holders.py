"""Where a model keeps its embedding tables: the one finder, which each kind of module with tables joins by itself."""

import abc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, singledispatch
from importlib import import_module
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from embcomp.codecs.base import Codec
from embcomp.methods.base import Store, Table, TablePlan

Form = Literal["plain", "compressed", "fused", "spread"]
"""How a module holds tables: as its library made it, compressed, under a fused optimizer, over several processes."""

_EXTENSIONS = {"torchrec": "embcomp.torchrec"}
"""Libraries with modules of their own that hold tables, and the package that registers these when it is imported."""


@dataclass(frozen=True)
class HeldStore:
    """The rows that one or more tables read.

    Attributes:
        store: the numbers of the store.
        weight: the stored rows, [rows, width].
        codec: the codec of the rows; None where they are served as they are.
        states: the state tensors of a fused optimizer, one row for each row.
    """

    store: Store
    weight: Tensor
    codec: Codec | None = None
    states: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Held:
    """A table of a model.

    Attributes:
        table: its ids and width, under the name that reports use.
        names: the names that a pattern may match, the one for messages first; "" for a model that is a table itself.
        stores: the rows that it reads, by store, in the order of its chunks.
        plan: how its ids become vectors; None for a table that was never compressed.
        dtype: the dtype of the vectors that the model gets.
    """

    table: Table
    names: list[str]
    stores: Mapping[str, HeldStore]
    plan: TablePlan | None = None
    dtype: torch.dtype = torch.float32

    @property
    def method(self) -> str:
        """The name of its method."""
        return "Full" if self.plan is None else self.plan.encoder.config["method"]

    @property
    def weight(self) -> Tensor:
        """The vectors of a table that was never compressed, [num_embeddings, embedding_dim]."""
        (store,) = self.stores.values()
        return store.weight

    @property
    def rows(self) -> list[Tensor]:
        """The weights of its stores, each once."""
        return [store.weight for store in self.stores.values()]


class Holder(abc.ABC):
    """A module with tables, at one or several paths of a model.

    Attributes:
        form: how it holds them.
        module: the module.
        paths: its paths, the first one in the order of the model first; "" is the model itself.
    """

    form: ClassVar[Form]

    def __init__(self, module: nn.Module, paths: list[str]) -> None:
        self.module, self.paths = module, paths

    @abc.abstractmethod
    def _tables(self) -> Iterator[Held]:
        """The tables in their order."""

    @cached_property
    def tables(self) -> dict[str, Held]:
        """The tables by name, in their order."""
        return {held.table.name: held for held in self._tables()}

    def exchanged(self, table: str | None) -> tuple[Held, Callable[[], None]] | None:
        """A table whose map may be exchanged, and what to call after that: it takes the number of ids from the encoder.

        None where tables of this kind have no map.

        Raises:
            ValueError: there is no such table, or its rows cannot take another map.
        """
        return None


class Spread(Holder):
    """A module whose tables are spread over several processes, or which is wrapped for them; nobody takes it apart.

    Attributes:
        state: what is the case, "is sharded", for messages.
        sharded: whether it is split, not just wrapped.
    """

    form = "spread"

    def __init__(self, module: nn.Module, paths: list[str], state: str, sharded: bool) -> None:
        super().__init__(module, paths)
        self.state, self.sharded = state, sharded

    def _tables(self) -> Iterator[Held]:
        return iter(())


@singledispatch
def holder_of(module: Any, paths: list[str]) -> Holder | None:
    """The holder of a module with tables, None for any other module. Each kind of module registers its own."""
    return None


@cache
def _holds(kind: type[nn.Module]) -> bool:
    """Whether modules of this class hold tables; imports who knows that, where a library came into the model."""
    for base in kind.__mro__:
        extension = _EXTENSIONS.get(base.__module__.partition(".")[0])
        if extension is not None:
            import_module(extension)
    return holder_of.dispatch(kind) is not holder_of.dispatch(object)


def holders(
    model: nn.Module,
    *,
    if_wrapped: str | None = None,
    if_sharded: str | None = None,
    opened: Callable[[Holder], bool] = lambda holder: False,
) -> list[Holder]:
    """The modules of a model that hold tables, in its order, each once with all its paths.

    What is inside of one of them is its own affair, and not listed.

    Args:
        model: the model, or a module that holds tables itself.
        if_wrapped: what to do about a module that is wrapped for several processes; None takes it for a holder.
        if_sharded: likewise about one that is sharded.
        opened: says which are left out, for what is inside of them.

    Raises:
        ValueError: a module is wrapped or sharded, and there is a remedy.

    Example:
        >>> import torch
        >>> from embcomp.holders import holders
        >>> item = torch.nn.Embedding(1000, 8)
        >>> model = torch.nn.ModuleDict({"item": item, "out": torch.nn.Linear(8, 1), "seen": item})
        >>> [(holder.form, holder.paths) for holder in holders(model)]
        [('plain', ['item', 'seen'])]
    """
    found: dict[int, Holder] = {}
    left_out: dict[int, Holder] = {}

    def walk(path: str, module: nn.Module) -> None:
        known = found.get(id(module))
        if known is not None:
            known.paths.append(path)
            return
        holder = left_out.get(id(module)) or (holder_of(module, [path]) if _holds(type(module)) else None)
        if isinstance(holder, Spread):
            remedy = if_sharded if holder.sharded else if_wrapped
            if remedy is not None:
                raise ValueError(f"{path or 'the model'!r} {holder.state}: {remedy}")
        if holder is not None:
            (left_out if opened(holder) else found)[id(module)] = holder
        if id(module) in found:
            return
        for name, child in module._modules.items():
            if child is not None:
                walk(join(path, name), child)

    walk("", model)
    return list(found.values())


def join(path: str, name: str) -> str:
    """The path of a part; either may be empty."""
    return ".".join(filter(None, (path, name)))


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is spread over processes (a DTensor, whose import takes longer than that of all embcomp)."""
    return hasattr(tensor, "placements")
