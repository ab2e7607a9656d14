"""What `compress_` puts in the place of tables: the modules that it can replace, and what replaces them."""

import abc
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from embcomp.codecs.base import Codec, coded_tables
from embcomp.holders import Holder, holders
from embcomp.initial_rows import Moments
from embcomp.methods.base import Method, Table, TablePlan
from embcomp.methods.request import tables_of
from embcomp.warm import Trained


class Plain(Holder):
    """A module whose tables can be compressed, as its library made it.

    Attributes:
        kinds: all such classes, in the order in which rows are drawn.
        behaves: whether the module does more than look up: it stays, and what is inside of it may be replaced.
    """

    form = "plain"
    kinds: ClassVar[list[type["Plain"]]] = []
    behaves: bool = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Plain.kinds.append(cls)

    @property
    def home(self) -> Hashable:
        """Holders of one home may share a store."""
        return id(self)

    @property
    def held(self) -> list[nn.Module]:
        """All modules that the swap replaces."""
        return [self.module]

    @classmethod
    def merged(cls, model: nn.Module, found: Sequence["Plain"]) -> list["Plain"]:
        """The holders of a model, those of this kind that hold one weight as one."""
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
        """What replaces the holders of this kind.

        Args:
            members: the holders.
            chosen: for each the method of each table to compress.
            moments: for each the moments of the numbers of each table.
        """

    def put(self, model: nn.Module, replacement: nn.Module) -> None:
        """Swap the module at all its paths, and what is tied to it."""
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

    @property
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
        """The trained vectors, and how much each id counts, by `counts` where these name the table."""
        vectors = self.weight.detach()
        given = counts.get(self.name)
        weigh = torch.ones(vectors.shape[0]) if given is None else given.float()
        weigh = weigh.to(vectors.device, copy=True)
        if self.padding_idx is not None:
            weigh[self.padding_idx] = 0.0  # its vector never comes from the rows
        return Trained(self.plan, vectors, weigh)


@dataclass(frozen=True)
class Swap:
    """Tables whose stores belong together: all that is new, ready to be put in.

    Attributes:
        parts: the tables.
        stores: the new rows, by store.
        replacements: each holder, and the module in its place.
    """

    parts: list[Part]
    stores: Mapping[str, Tensor]
    replacements: list[tuple[Plain, nn.Module]]

    def codecs(self) -> dict[str, tuple[Tensor, Codec]]:
        """The rows [rows, width] of stores with a codec, and it, by store."""
        names = {id(store): name for name, store in self.stores.items()}
        coded = [pair for _, new in self.replacements for pair in coded_tables(new)]
        return {names[id(weight)]: (weight.detach(), codec) for weight, codec in coded}

    def values(self) -> dict[str, Tensor]:
        """The rows of each store without what a codec keeps beside them, [rows, dim]."""
        coded = {name: codec.values(store) for name, (store, codec) in self.codecs().items()}
        return {name: store.detach() for name, store in self.stores.items()} | coded


def put(model: nn.Module, paths: Sequence[str], module: nn.Module) -> None:
    """Put a module at several places of the model."""
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, module)


def plain_holders(model: nn.Module) -> list[Plain]:
    """The modules of a model whose tables can be compressed, in its order; compressed ones are passed over.

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
    """All that `compress_` may swap."""
    tables = [held.table for holder in plain_holders(model) for held in holder.tables.values()]
    if not tables:
        raise ValueError("tables: the model has no embedding table that compress_ knows")
    return tables
