"""The holders of torch's modules with tables, and of the drop-ins."""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from embcomp.additions import check_additions, is_hooked
from embcomp.holders import Held, HeldStore, Holder, Spread, holder_of
from embcomp.initial_rows import Moments, pooled
from embcomp.methods.base import Method, Plan, Store, Table, TablePlan, check_size, start_like
from embcomp.nn.arguments import FLOATS
from embcomp.nn.embedding import CompressedEmbedding
from embcomp.nn.embedding_bag import CompressedEmbeddingBag
from embcomp.nn.stores import PlainStore, check_floats
from embcomp.nn.table import CompressedTable
from embcomp.nn.tied import TiedLinear
from embcomp.swaps import Part, Plain, Swap, put

Module = nn.Embedding | nn.EmbeddingBag


class TorchHolder(Plain):
    """An `nn.Embedding` or `nn.EmbeddingBag`, with the modules that are tied to it.

    Attributes:
        twins: other modules with the same settings and the same weight; the swap makes one module of them.
        heads: the output layers (`nn.Linear`) with the same weight, and their paths.
    """

    module: Module

    def __init__(self, module: Module, paths: list[str]) -> None:
        super().__init__(module, paths)
        self.twins: list[Module] = []
        self.heads: dict[nn.Linear, list[str]] = {}

    def _tables(self) -> Iterator[Held]:
        module = self.module
        name = self.paths[0] or "embedding"  # the model itself may be a table
        table = Table(name, module.num_embeddings, module.embedding_dim)
        store = HeldStore(Store(module.num_embeddings, module.embedding_dim), module.weight)
        yield Held(table, self.paths, {name: store}, dtype=module.weight.dtype)

    @property
    def home(self) -> Hashable:
        return "torch"

    @property
    def made(self) -> Collection[str]:
        return _made(nn.EmbeddingBag if isinstance(self.module, nn.EmbeddingBag) else nn.Embedding)

    @property
    def held(self) -> list[nn.Module]:
        return [self.module, *self.twins, *self.heads]

    @property
    def tied(self) -> list[str]:
        return [path for paths in self.heads.values() for path in paths]

    @classmethod
    def merged(cls, model: nn.Module, found: Sequence[Plain]) -> list[Plain]:
        """Merge holders of modules with one weight and equal settings, and add the layers that are tied to them."""
        by_weight: dict[int, TorchHolder] = {}
        kept: list[Plain] = []
        for holder in found:
            weight = holder.module._parameters.get("weight") if isinstance(holder, TorchHolder) else None
            if isinstance(holder, TorchHolder) and weight is not None:
                first = by_weight.setdefault(id(weight), holder)
                if first is not holder and _settings(first.module) == _settings(holder.module):
                    first.twins.append(holder.module)
                    first.paths.extend(holder.paths)
                    continue
            kept.append(holder)
        for path, layer in model.named_modules(remove_duplicate=False):
            if type(layer) is nn.Linear and id(layer.weight) in by_weight:
                first = by_weight[id(layer.weight)]
                module = first.module
                same = (layer.out_features, layer.in_features) == (module.num_embeddings, module.embedding_dim)
                parts = {*layer._parameters, *layer._buffers, *layer._modules}
                if same and parts == {"weight", "bias"} and not is_hooked(layer) and "forward" not in vars(layer):
                    first.heads.setdefault(layer, []).append(path)
        return kept

    @classmethod
    def swaps(
        cls,
        members: Sequence[Any],
        chosen: Mapping[Plain, Mapping[str, Method]],
        moments: Mapping[Plain, Mapping[str, Moments]],
    ) -> list[Swap]:
        """Make the drop-ins; modules of one method instance are planned together."""
        groups: dict[int, list[TorchHolder]] = {}
        for holder in members:
            groups.setdefault(id(chosen[holder][holder.paths[0]]), []).append(holder)
        return [
            _swap(chosen[group[0]][group[0].paths[0]], group, [moments[holder][holder.paths[0]] for holder in group])
            for group in groups.values()
        ]

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
        check_table(module, where)
        if module.max_norm is not None:
            raise ValueError(f"{where}: max_norm={module.max_norm} renormalises rows in place; set it to None first")
        if module.scale_grad_by_freq:
            raise ValueError(f"{where}: scale_grad_by_freq counts ids, which rows do not know; set it to False first")

    def replacement(self, method: Method, plan: Plan, part: TablePlan, stores: Mapping[str, PlainStore]) -> nn.Module:
        """Make the compressed module with the settings of this one."""
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


class CompressedHolder(Holder):
    """The holder of a `CompressedEmbedding` or `CompressedEmbeddingBag`."""

    form = "compressed"
    module: CompressedTable

    def _tables(self) -> Iterator[Held]:
        module = self.module
        plan = TablePlan(module.encoder.table, module.encoder, module.chunks, module.combiner)
        held: Any = module.stores
        stores = dict.fromkeys(chunk.store for chunk in module.chunks)
        read = {
            name: HeldStore(store.store, store.weight, store.codec) for name, store in zip(stores, held, strict=True)
        }
        yield Held(plan.table, self.paths, read, plan, held[0].weight.dtype, module.padding_vector)

    def exchanged(self, table: str | None) -> tuple[Held, Callable[[], None]]:
        if table is not None:
            raise ValueError(f"table={table!r}: {type(self.module).__name__} is one table; leave it out")

        def resized() -> None:
            self.module.num_embeddings = self.module.encoder.table.num_embeddings

        (held,) = self.tables.values()
        return held, resized


holder_of.register(nn.Embedding, TorchHolder)
holder_of.register(nn.EmbeddingBag, TorchHolder)
holder_of.register(CompressedTable, CompressedHolder)


@holder_of.register
def _(module: DistributedDataParallel, paths: list[str]) -> Holder:
    return Spread(module, paths, "is wrapped in DistributedDataParallel", sharded=False)


def own_behavior(kind: type[nn.Module]) -> list[str]:
    """Return what a class defines beyond `nn.Embedding` or `nn.EmbeddingBag`, other than how its rows are drawn.

    What its constructor adds to a module is seen there (`embcomp.additions`).
    """
    bases = [base for base in kind.__mro__ if base not in (nn.Embedding, nn.EmbeddingBag) and issubclass(base, Module)]
    own = {name for base in bases for name in vars(base)}
    described = {"__annotations__", "__firstlineno__", "__static_attributes__", "__parameters__", "__orig_bases__"}
    return sorted(own - {"__init__", "reset_parameters", "extra_repr", "__module__", "__doc__"} - described)


def check_table(module: Module, where: str) -> None:
    """Raise ValueError if a module is no plain table that can be compressed; the message begins with `where`."""
    check_additions(module, where)
    if own := own_behavior(type(module)):
        raise ValueError(
            f"{where}: {type(module).__name__} is a subclass with its own {', '.join(own)}; exclude it with "
            "embcomp.Full()"
        )
    weight, shape = module.weight, (module.num_embeddings, module.embedding_dim)
    if weight.dtype not in FLOATS:
        raise ValueError(f"{where}: its weight is {weight.dtype}; convert the table with .float(), or exclude it")
    if weight.shape != shape:
        raise ValueError(
            f"{where}: its weight is {list(weight.shape)}, but num_embeddings and embedding_dim say {list(shape)}; "
            "set them to the shape of the weight"
        )


def _swap(method: Method, members: Sequence[TorchHolder], moments: Sequence[Moments]) -> Swap:
    """Make the drop-ins of one method instance, with rows drawn to have these moments."""
    plan = method.plan([holder.tables[holder.paths[0]].table for holder in members])
    check_size(plan.sizes, [part.table for part in plan.tables])
    like = {(holder.module.weight.device, holder.module.weight.dtype, holder.module.sparse) for holder in members}
    if method.shares_store and len(like) > 1:
        raise ValueError(
            f"tables {[holder.paths[0] for holder in members]} share a store, but differ in device, dtype or sparse"
        )
    of_store: dict[str, list[Moments]] = {name: [] for name in plan.stores}
    for own, part in zip(moments, plan.tables, strict=True):
        for name in {chunk.store for chunk in part.chunks}:
            of_store[name].append(own)
    drawn = {name: pooled(each) for name, each in of_store.items()}
    drawn_like = {part.table.name: own for own, part in zip(moments, plan.tables, strict=True)}
    stores: dict[str, PlainStore] = {}
    parts, replacements = [], []
    for holder, part in zip(members, plan.tables, strict=True):
        old = holder.module
        for chunk in part.chunks:
            if chunk.store not in stores:
                store = plan.stores[chunk.store]
                check_floats(store, holder.paths[0])
                home = old.weight.device, old.weight.dtype
                stores[chunk.store] = PlainStore(store, old.sparse, *home, like=drawn[chunk.store])
        start_like(part.combiner, drawn_like[part.table.name])
        parts.append(Part(holder, method, part))
        replacements.append((holder, holder.replacement(method, plan, part, stores)))
    return Swap(parts, {name: store.weight for name, store in stores.items()}, replacements)


@cache
def _made(kind: type[Module]) -> frozenset[str]:
    """The names of the attributes that the constructor of `nn.Embedding` or `nn.EmbeddingBag` sets."""
    return frozenset(vars(kind(1, 1, device="meta")))


def _padding_vector(module: Module) -> Tensor | None:
    """The vector at `padding_idx`; None if it is zero or unknown."""
    if module.padding_idx is None or module.weight.is_meta:
        return None
    vector = module.weight.detach()[module.padding_idx].clone()
    return vector if bool(vector.any()) else None


def _settings(module: Module) -> tuple[Any, ...]:
    names = ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    more = ("mode", "include_last_offset", "training")
    return type(module), *(getattr(module, name, None) for name in (*names, *more))
