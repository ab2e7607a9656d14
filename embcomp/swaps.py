"""The swap of tables in `compress_`: the modules that it can replace, and their replacements."""

import abc
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from embcomp.additions import attributes_of
from embcomp.codecs.base import Codec
from embcomp.holders import Holder, coded_tables, holders
from embcomp.initial_rows import Moments
from embcomp.methods.base import Method, Table, TablePlan
from embcomp.methods.request import tables_of
from embcomp.trained import Trained


class Plain(Holder):
    """A module as its library made it, whose tables can be compressed.

    Attributes:
        kinds: all subclasses, in the order in which their rows are drawn.
        behaves: True if the module does more than look up: it stays, and the modules inside it may be replaced.
    """

    form = "plain"
    kinds: ClassVar[list[type["Plain"]]] = []
    behaves: bool = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Plain.kinds.append(cls)

    @property
    def home(self) -> Hashable:
        """A key; holders with the same key may share a store."""
        return id(self)

    @property
    @abc.abstractmethod
    def made(self) -> Collection[str]:
        """The names of the attributes that the class of the module makes."""

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes that were set on the module afterwards, which the replacement gets."""
        return attributes_of(self.module, self.made)

    @property
    def held(self) -> list[nn.Module]:
        """All modules that the swap replaces."""
        return [self.module]

    @property
    def tied(self) -> list[str]:
        """The paths of the layers that hold a table's weight, and read the compressed table after the swap."""
        return []

    @classmethod
    def merged(cls, model: nn.Module, found: Sequence["Plain"]) -> list["Plain"]:
        """Return the holders of a model, with those of this kind that hold the same weight merged into one."""
        return list(found)

    @abc.abstractmethod
    def check(self, methods: Mapping[str, Method]) -> None:
        """Raise ValueError for settings that no compressed table can keep."""

    @classmethod
    @abc.abstractmethod
    def swaps(
        cls,
        members: Sequence[Any],
        chosen: Mapping["Plain", Mapping[str, Method]],
        moments: Mapping["Plain", Mapping[str, Moments]],
    ) -> list["Swap"]:
        """Build the replacements of the holders of this kind.

        Args:
            members: the holders.
            chosen: the method of each table to compress, by holder.
            moments: the moments of the values of each table, by holder.
        """

    def put(self, model: nn.Module, replacement: nn.Module) -> None:
        """Swap the module at all its paths, and what is tied to it."""
        vars(replacement).update(self.attributes)
        put(model, self.paths, replacement)


@dataclass(frozen=True)
class Part:
    """One table to swap, and how it will be stored."""

    holder: Plain
    method: Method
    plan: TablePlan

    @property
    def name(self) -> str:
        return self.plan.table.name

    @cached_property
    def stores(self) -> set[str]:
        return {chunk.store for chunk in self.plan.chunks}

    @property
    def weight(self) -> Tensor:
        """The weight to replace, [num_embeddings, embedding_dim]."""
        return self.holder.tables[self.name].weight

    @property
    def padding_idx(self) -> int | None:
        return getattr(self.holder.module, "padding_idx", None)

    def trained(self, counts: Mapping[str, Tensor]) -> Trained:
        """The trained vectors and the weight of each id: its count if `counts` names the table, else 1."""
        vectors = self.weight.detach()
        given = counts.get(self.name)
        if given is None:  # one number for all ids
            weigh = torch.ones((), device=vectors.device).expand(vectors.shape[0])
        else:
            weigh = given.to(vectors.device, torch.float32)
        if self.padding_idx is not None:
            weigh = weigh.clone()
            weigh[self.padding_idx] = 0.0  # its vector never comes from the rows
        return Trained(self.plan, vectors, weigh)


@dataclass(frozen=True)
class Swap:
    """A group of tables whose stores belong together, and everything that replaces them, ready to be put in.

    Attributes:
        parts: the tables.
        stores: the new rows, by store.
        replacements: each holder with the module that replaces it.
    """

    parts: list[Part]
    stores: Mapping[str, Tensor]
    replacements: list[tuple[Plain, nn.Module]]

    @cached_property
    def readers(self) -> dict[str, list[Part]]:
        """The parts that read each store, by store."""
        readers: dict[str, list[Part]] = {name: [] for name in self.stores}
        for part in self.parts:
            for name in part.stores:
                readers[name].append(part)
        return readers

    def codecs(self) -> dict[str, tuple[Tensor, Codec]]:
        """The rows [rows, width] of each store that has a codec, and the codec, by store."""
        names = {id(store): name for name, store in self.stores.items()}
        coded = [pair for _, new in self.replacements for pair in coded_tables(new)]
        return {names[id(weight)]: (weight.detach(), codec) for weight, codec in coded}

    def values(self) -> dict[str, Tensor]:
        """The values of each store's rows, [rows, dim], without the columns of a codec."""
        coded = {name: codec.values(store) for name, (store, codec) in self.codecs().items()}
        return {name: store.detach() for name, store in self.stores.items()} | coded


def put(model: nn.Module, paths: Sequence[str], module: nn.Module) -> None:
    """Put a module at several paths of the model."""
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, module)


def plain_holders(model: nn.Module) -> list[Plain]:
    """Return the modules of a model whose tables can be compressed, in its order; compressed ones are skipped.

    Raises:
        ValueError: the model itself is a table, or it holds tables that are fused, sharded or wrapped.
    """
    plain: list[Plain] = []
    for holder in holders(
        model,
        if_wrapped="compress before wrapping",
        if_sharded="compress before sharding",
        opened=lambda holder: isinstance(holder, Plain) and holder.behaves,
    ):
        if holder.form == "fused":
            where = holder.paths[0] or "the model"
            raise ValueError(f"{where!r} trains inside the backward pass already: compress before fuse_")
        if isinstance(holder, Plain):
            if "" in holder.paths:
                raise ValueError(
                    "compress_ swaps tables inside a model; to replace a single table, build the drop-in itself"
                )
            plain.append(holder)
    for kind in Plain.kinds:
        plain = kind.merged(model, plain)
    return plain


@tables_of.register
def _(model: nn.Module) -> list[Table]:
    """Return all tables that `compress_` may swap."""
    tables = [held.table for holder in plain_holders(model) for held in holder.tables.values()]
    if not tables:
        raise ValueError("tables: the model has no embedding table that compress_ knows")
    return tables
