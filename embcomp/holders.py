"""The one finder of a model's embedding tables; each kind of module that holds tables registers itself here."""

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
from embcomp.settings import shown

Form = Literal["plain", "compressed", "fused", "spread"]
"""How a module holds tables: as its library made it, compressed, with a fused optimizer, or over several processes."""

_EXTENSIONS = {"torchrec": "embcomp.torchrec"}
"""The package that registers the table modules of each library when it is imported."""


@dataclass(frozen=True)
class HeldStore:
    """The rows that one or more tables read.

    Attributes:
        store: the numbers of the store.
        weight: the stored rows, [rows, width].
        codec: the codec of the rows; None if they are served as they are.
        states: the state tensors of a fused optimizer, with one row for each row of the weight.
        whole: True if this process holds all rows, False for those of a sharded collection.
    """

    store: Store
    weight: Tensor
    codec: Codec | None = None
    states: tuple[Tensor, ...] = ()
    whole: bool = True


@dataclass(frozen=True)
class Held:
    """A table of a model.

    Attributes:
        table: the number of ids and the width, under the name that reports use.
        names: the names that a pattern may match, the one for messages first; "" for a model that is itself a table.
        stores: the rows that the table reads, by store, in the order of its chunks.
        plan: the plan by which its ids become vectors; None for a table that was never compressed.
        dtype: the dtype of the vectors that the model receives.
        padding_vector: the vector of a padding id that reads no rows; None if it is zero or there is none.
    """

    table: Table
    names: list[str]
    stores: Mapping[str, HeldStore]
    plan: TablePlan | None = None
    dtype: torch.dtype = torch.float32
    padding_vector: Tensor | None = None

    @property
    def method(self) -> str:
        """The name of the table's method."""
        return "Full" if self.plan is None else self.plan.encoder.config["method"]

    @property
    def weight(self) -> Tensor:
        """The vectors of a table that was never compressed, [num_embeddings, embedding_dim]."""
        (store,) = self.stores.values()
        return store.weight

    @property
    def rows(self) -> list[Tensor]:
        """The weights of the table's stores, each once."""
        return [store.weight for store in self.stores.values()]


class Holder(abc.ABC):
    """A module with tables, at one or several paths of a model.

    Attributes:
        form: the form in which it holds its tables.
        module: the module.
        paths: the paths of the module, in the order of the model; "" is the model itself.
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
        """Return a table whose map may be exchanged, and a function to call afterwards.

        The function takes the new number of ids from the encoder. None if tables of this kind have no map.

        Raises:
            ValueError: there is no such table, or its rows cannot take another map.
        """
        return None


class Spread(Holder):
    """A module whose tables are spread over several processes, or which is wrapped for them; it is not taken apart.

    Attributes:
        state: the state as a phrase for messages, such as "is sharded".
        sharded: True if the module is split, False if it is only wrapped.
        optimizer: the fused optimizer of all shards inside; None for a module that leaves it to the one around it.
    """

    form = "spread"

    def __init__(
        self, module: nn.Module, paths: list[str], state: str, sharded: bool, optimizer: Any | None = None
    ) -> None:
        super().__init__(module, paths)
        self.state, self.sharded, self.optimizer = state, sharded, optimizer

    @property
    def is_shard(self) -> bool:
        """True if the module itself is split, not modules inside it."""
        return self.sharded and self.optimizer is None

    def _tables(self) -> Iterator[Held]:
        return iter(())


@singledispatch
def holder_of(module: Any, paths: list[str]) -> Holder | None:
    """Return the holder of a module with tables, or None for another module. Each kind of module registers its own."""
    return None


@cache
def extend(kind: type) -> None:
    """Import embcomp's extension for the library of a class, which registers what it knows of that library."""
    for base in kind.__mro__:
        extension = _EXTENSIONS.get(base.__module__.partition(".")[0])
        if extension is not None:
            import_module(extension)


@cache
def _holds(kind: type[nn.Module]) -> bool:
    """Return whether modules of this class hold tables."""
    extend(kind)
    return holder_of.dispatch(kind) is not holder_of.dispatch(object)


def check_model(model: Any) -> None:
    """Raise TypeError if `model` is not a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {shown(model)}")


def holders(
    model: nn.Module,
    *,
    if_wrapped: str | None = None,
    if_sharded: str | None = None,
    opened: Callable[[Holder], bool] = lambda holder: False,
) -> list[Holder]:
    """Return the modules of a model that hold tables, in its order, each once with all its paths.

    Modules inside a holder are not listed.

    Args:
        model: the model, or a module that holds tables itself.
        if_wrapped: the remedy to name for a module that is wrapped for several processes; None accepts it as a holder.
        if_sharded: the remedy to name for a sharded module; None accepts it as a holder.
        opened: a function that tells which holders to leave out in favor of the modules inside them.

    Raises:
        TypeError: `model` is not a module.
        ValueError: a module is wrapped or sharded, and a remedy is given for that.

    Example:
        >>> import torch
        >>> from embcomp.holders import holders
        >>> item = torch.nn.Embedding(1000, 8)
        >>> model = torch.nn.ModuleDict({"item": item, "out": torch.nn.Linear(8, 1), "seen": item})
        >>> [(holder.form, holder.paths) for holder in holders(model)]
        [('plain', ['item', 'seen'])]
    """
    check_model(model)
    listed: dict[int, Holder] = {}
    left_out: dict[int, Holder] = {}

    def walk(path: str, module: nn.Module) -> None:
        known = listed.get(id(module))
        if known is not None:
            known.paths.append(path)
            return
        holder = left_out.get(id(module)) or (holder_of(module, [path]) if _holds(type(module)) else None)
        if isinstance(holder, Spread):
            remedy = if_sharded if holder.sharded else if_wrapped
            if remedy is not None:
                raise ValueError(f"{path or 'the model'!r} {holder.state}: {remedy}")
        if holder is not None:
            (left_out if opened(holder) else listed)[id(module)] = holder
        if id(module) in listed:
            return
        for name, child in module._modules.items():
            if child is not None:
                walk(join(path, name), child)

    walk("", model)
    return list(listed.values())


def sharded(model: nn.Module) -> list[Spread]:
    """Return the sharded modules of a model, also those inside a module that is sharded as a whole."""
    listed = holders(model, opened=lambda holder: not (isinstance(holder, Spread) and holder.is_shard))
    return [holder for holder in listed if isinstance(holder, Spread)]


def coded_tables(model: nn.Module) -> Iterator[tuple[Tensor, Codec]]:
    """Yield the rows [rows, width] and the codec of each coded table that this process holds whole, each codec once."""
    seen: set[int] = set()
    for holder in holders(model, opened=lambda holder: isinstance(holder, Spread)):
        for store in (store for held in holder.tables.values() for store in held.stores.values()):
            if store.codec is not None and store.whole and id(store.codec) not in seen:
                seen.add(id(store.codec))
                yield store.weight, store.codec


def join(path: str, name: str) -> str:
    """Join the path of a module and the name of a part; either may be empty."""
    return ".".join(filter(None, (path, name)))


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is spread over processes, without importing DTensor, which is slow to import."""
    return hasattr(tensor, "placements")
