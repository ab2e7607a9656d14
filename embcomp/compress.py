"""`compress_`: swaps the tables of a model in place, and reports what was saved."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from embcomp.caches import drop_outputs
from embcomp.codecs.base import Codec, coded_tables
from embcomp.initial_rows import Moments, moments_of, pooled
from embcomp.methods.base import Combiner, Method, TablePlan
from embcomp.methods.full import Full
from embcomp.nn.stores import PlainStore, check_floats
from embcomp.nn.table import CompressedTable
from embcomp.notes import note, warn
from embcomp.optimizers import held_optimizers
from embcomp.regularised import penalties, put_rows
from embcomp.settings import checked
from embcomp.sites import Site, TorchSite, check_not_held, find_sites
from embcomp.sizes import grouped, nbytes, text_table
from embcomp.warm import Trained, warm_start


@dataclass(frozen=True)
class TableReport:
    """One table before and after. Bytes hold its maps and its part of a shared store.

    Attributes:
        name: the table.
        method: its method.
        rows: rows of the stores that it reads.
        bytes_before: bytes of the weight replaced.
        bytes_after: bytes while it trains, without the state of an optimizer; `training_nbytes` is the same.
        served_nbytes: bytes as it is served.

    `note` says where a table is larger than before, and where ids of a small one no longer have different vectors.

    Example:
        >>> import torch, embcomp
        >>> model = torch.nn.ModuleDict({"item": torch.nn.Embedding(1000, 8)})
        >>> (table,) = embcomp.compress_(model, {"item": embcomp.HashingTrick(rows=100)}).tables
        >>> table.name, table.rows, table.bytes_before, table.bytes_after
        ('item', 100, 32000, 3208)
    """

    name: str
    method: str
    rows: int
    bytes_before: int
    bytes_after: int
    served_nbytes: int
    note: str = ""

    @property
    def training_nbytes(self) -> int:
        return self.bytes_after

    @property
    def ratio(self) -> float:
        """How many times smaller the table is as it is served."""
        return self.bytes_before / max(1, self.served_nbytes)


@dataclass(frozen=True)
class CompressionReport:
    """What `compress_` did; `print(report)` shows it as a table.

    Example:
        >>> import torch, embcomp
        >>> model = torch.nn.ModuleDict({"item": torch.nn.Embedding(1000, 8)})
        >>> report = embcomp.compress_(model, {"item": embcomp.HashingTrick(rows=100)})
        >>> report.bytes_before, report.bytes_after, round(report.ratio, 1)
        (32000, 3208, 10.0)
    """

    tables: list[TableReport] = field(default_factory=list)

    @property
    def bytes_before(self) -> int:
        return sum(table.bytes_before for table in self.tables)

    @property
    def bytes_after(self) -> int:
        return sum(table.bytes_after for table in self.tables)

    @property
    def training_nbytes(self) -> int:
        return self.bytes_after

    @property
    def served_nbytes(self) -> int:
        return sum(table.served_nbytes for table in self.tables)

    @property
    def ratio(self) -> float:
        """How many times smaller all tables together are as they are served."""
        return self.bytes_before / max(1, self.served_nbytes)

    def __str__(self) -> str:
        header = ("table", "method", "rows", "bytes before", "bytes training", "bytes served", "smaller")
        lines = [(t.name, t.method, grouped(t.rows), *_sizes(t)) for t in self.tables]
        text = text_table(header, [*lines, ("total", "", "", *_sizes(self))])
        if not any(table.note for table in self.tables):
            return text
        notes = ["note", *[table.note for table in self.tables], ""]
        width = max(map(len, text.splitlines()))
        return "\n".join(
            f"{line:{width}}  {note}".rstrip() for line, note in zip(text.splitlines(), notes, strict=True)
        )


def _sizes(report: TableReport | CompressionReport) -> tuple[str, ...]:
    """The cells of a line from the bytes on."""
    sizes = (report.bytes_before, report.training_nbytes, report.served_nbytes)
    return *map(grouped, sizes), f"{report.ratio:.1f}x"


def compress_(
    model: nn.Module,
    methods: Mapping[str, Method] | Method,
    *,
    init: Literal["fresh", "warm", "fit"] = "fresh",
    counts: Mapping[str, Tensor] | None = None,
) -> CompressionReport:
    """Swaps the embedding tables of a model for compressed ones, in place.

    `nn.Embedding`, `nn.EmbeddingBag` and torchrec's EmbeddingBagCollection and EmbeddingCollection are swapped. A
    module that is used in two places stays one module, and an output layer (`nn.Linear`) that holds a table's weight
    reads the compressed table. Make the optimizer after this call: one made before would hold the old tables (unless
    the model leads to it and it has not stepped: then it gets the new ones).

    Args:
        model: the model; nothing changes where an error is raised.
        methods: a method for each table. Keys are glob patterns over module paths ("user.embedding") and torchrec table
            names; the first match wins, and a table that no key matches stays as it is. A method alone is for all.
        init: "fresh" draws new rows, so that the vectors have the mean and the standard deviation of the weights
            replaced (tables that share a store: of all of them together); "warm" starts each row at the
            (count-weighted) mean of the trained vectors that map to it, refined by least squares where ids add up
            several rows, and what a method learns beside them (code books, steps, matrices) where it suits these rows
            best; "fit" is the same for a model that is served as it is then, without training: methods that learn
            nothing beside their rows are refused.
        counts: with init="warm" or "fit", how often each id occurs, [num_embeddings] by table name; others weigh all
            ids alike.

    Returns:
        Bytes before and after, table by table.

    Raises:
        TypeError: `methods` or a value of it is not a method's configuration.
        ValueError: a pattern matches no table; counts without a warm start; a method cannot compress a table, or has
            nothing to fit; or a
            table cannot be swapped: its weight is held elsewhere in the model, frozen (fresh rows would never be
            trained) or not finite, `max_norm`, a subclass with behaviour of its own, a sharded module.

    Warns:
        CompressionWarning: a table becomes larger, or ids of a small table can no longer be told apart.

    Example:
        >>> import torch, embcomp
        >>> model = torch.nn.ModuleDict({"user": torch.nn.Embedding(50_000, 16), "item": torch.nn.Embedding(9_000, 16)})
        >>> print(embcomp.compress_(model, {"user": embcomp.HashingTrick(rows=500), "*": embcomp.DoubleHash(rows=900)}))
        table  method        rows  bytes before  bytes training  bytes served  smaller
        user   HashingTrick   500     3 200 000          32 008        32 008   100.0x
        item   DoubleHash     900       576 000          57 616        57 616    10.0x
        total                         3 776 000          89 624        89 624    42.1x
    """
    checked(init, Literal["fresh", "warm", "fit"], "init")
    counts = checked(counts, Mapping[str, Tensor] | None, "counts")
    if counts and init == "fresh":
        raise ValueError("counts weigh the ids of a warm start: pass init='warm' with them, or leave them out")
    sites = find_sites(model)
    chosen = _choose(sites, _by_pattern(methods))
    touched = [site for site in sites if chosen[site]]
    for site in touched:
        site.check(chosen[site])
    owned = {id(weight): site.paths[0] for site in touched for weight in site.module.parameters()}
    optimizers = held_optimizers(model, lambda tensor: owned.get(id(tensor)))
    penalised = penalties(model, lambda tensor: id(tensor) in owned)
    check_not_held(model, touched, penalised)
    weights = _checked_counts(touched, counts or {})
    torch_sites = [site for site in touched if isinstance(site, TorchSite)]
    if init != "fresh":
        _check_trained(touched)
    else:
        _check_not_frozen(touched, chosen)
    moments = {site: _moments(site, chosen[site]) for site in touched}
    swaps = _torch_swaps(torch_sites, chosen, moments)
    swaps += _torchrec_swaps([site for site in touched if site not in torch_sites], chosen, moments)
    if init == "fit":
        for swap in swaps:
            _check_fitted(swap)
    for swap in swaps:
        kept = [part for part in swap.parts if isinstance(part.method, Full)]
        learned = [part for part in swap.parts if init != "fresh" and not isinstance(part.method, Full)]
        values = swap.values()
        warm_start([part.trained({}) for part in kept + learned if not part.weight.is_meta], values)
        if weights and learned:  # over the plain means, which stay where no id with a count maps to a row
            warm_start([part.trained(weights) for part in learned], values)
        for name, (store, codec) in swap.codecs().items():
            if learned and not store.is_meta:
                codec.fit_(store, values[name])
        for name, store in swap.stores.items():
            if store.is_floating_point():
                store.requires_grad_(any(p.weight.requires_grad for p in swap.parts if name in p.stores))
            elif frozen := [p.name for p in swap.parts if name in p.stores and not p.weight.requires_grad]:
                raise ValueError(
                    f"cannot compress {frozen[0]!r}: its weight is frozen (requires_grad=False), and rows without a "
                    "float copy are always trained; take copy='float', or unfreeze it"
                )
    order = {name: place for place, name in enumerate(name for site in sites for name in site.tables)}
    lines = sorted((line for swap in swaps for line in swap.report()), key=lambda line: order[line.name])
    replacements = [pair for swap in swaps for pair in swap.replacements]
    new = {id(old): list(module.parameters()) for site, module in replacements for old in site.module.parameters()}
    groups = [held.plan(new) for held in optimizers]
    warn([(line.name, line.note) for line in lines])  # before anything changes, as it may be an error
    drop_outputs(model, [site.module for site, _ in replacements])
    for site, replacement in replacements:
        site.put(model, replacement)
    for held, parameters in zip(optimizers, groups, strict=True):
        held.put(parameters)
    steps = {id(parameter) for _, module in replacements for parameter in _of_codecs(module)}
    rows = {old: [p for p in parameters if id(p) not in steps] for old, parameters in new.items()}
    for attribute in penalised:
        put_rows(attribute, rows)
    return CompressionReport(lines)


def _of_codecs(module: nn.Module) -> Iterator[nn.Parameter]:
    """What codecs learn: steps of grids, say, which are no values of the table that a penalty could mean."""
    for _, codec in coded_tables(module):
        yield from codec.parameters()


@dataclass(frozen=True)
class _Part:
    """One table to swap, and how it will be stored."""

    site: Site
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
        return self.site.weight(self.name)

    def trained(self, counts: Mapping[str, Tensor]) -> Trained:
        vectors = self.weight.detach()
        given = counts.get(self.name)
        weigh = torch.ones(vectors.shape[0]) if given is None else given.float()
        weigh = weigh.to(vectors.device, copy=True)
        padding = getattr(self.site.module, "padding_idx", None)
        if padding is not None:
            weigh[padding] = 0.0  # its vector never comes from the rows
        return Trained(self.plan, vectors, weigh)


@dataclass(frozen=True)
class _Swap:
    """Tables whose stores belong together: all that is new, ready to be put in."""

    parts: list[_Part]
    stores: Mapping[str, Tensor]
    replacements: list[tuple[Site, nn.Module]]

    def codecs(self) -> dict[str, tuple[Tensor, Codec]]:
        """The rows [rows, width] of stores with a codec, and it, by store."""
        names = {id(store): name for name, store in self.stores.items()}
        coded = [pair for _, new in self.replacements for pair in coded_tables(new)]
        return {names[id(weight)]: (weight.detach(), codec) for weight, codec in coded}

    def values(self) -> dict[str, Tensor]:
        """The rows of each store without what a codec keeps beside them, [rows, dim]."""
        coded = {name: codec.values(store) for name, (store, codec) in self.codecs().items()}
        return {name: store.detach() for name, store in self.stores.items()} | coded

    def _buffers(self, part: _Part) -> list[Tensor]:
        """What is stored for a table beside its rows."""
        new = dict(self.replacements)[part.site]
        own = [new.padding_vector] if isinstance(new, CompressedTable) else []
        combiner = part.plan.combiner
        kept = (*part.plan.encoder.buffers(), *combiner.parameters(), *combiner.buffers(), *own)
        return [tensor for tensor in kept if tensor is not None]

    def report(self) -> Iterator[TableReport]:
        """One line a table; the bytes of a shared store are split in proportion to the tables it replaces.

        A map that tables share counts for the first of them.
        """
        before = {part.name: part.weight.nbytes for part in self.parts}
        codecs = self.codecs()
        users = {store: [p.name for p in self.parts if store in p.stores] for store in self.stores}
        counted: set[int] = set()
        for part in self.parts:
            maps = [buffer for buffer in self._buffers(part) if id(buffer) not in counted]
            counted |= {id(buffer) for buffer in maps}
            training = served = sum(buffer.nbytes for buffer in maps)
            for store in part.stores:
                size = in_service = self.stores[store].nbytes
                if store in codecs:
                    codec = codecs[store][1]
                    size, in_service = size + nbytes(codec), codec.served_nbytes
                sizes = {name: before[name] for name in users[store]}
                training += _share(size, sizes, part.name)
                served += _share(in_service, sizes, part.name)
            rows = sum(self.stores[store].shape[0] for store in part.stores)
            padding = getattr(part.site.module, "padding_idx", None)
            dims = {name: codecs[name][1].dim if name in codecs else s.shape[1] for name, s in self.stores.items()}
            noted = note(part.plan, dims, padding, before[part.name], served)
            yield TableReport(part.name, _kind(part.method), rows, before[part.name], training, served, noted)


def _by_pattern(methods: object) -> Mapping[str, Method]:
    if isinstance(methods, Method):
        return {"*": methods}
    if not isinstance(methods, Mapping) or not all(isinstance(pattern, str) for pattern in methods):
        raise TypeError(
            "methods must be a method's configuration, such as embcomp.HashingTrick(rows=1000), or a mapping from "
            f"patterns to them, such as {{'item': embcomp.HashingTrick(rows=1000)}}; got {methods!r}"
        )
    return methods


def _share(size: int, sizes: Mapping[str, int], name: str) -> int:
    """The part of `size` bytes that falls to one table, in proportion to the tables' sizes; the parts add up to it."""
    whole, before = sum(sizes.values()), 0
    for other, own in sizes.items():
        if other == name:
            return (before + own) * size // whole - before * size // whole
        before += own
    raise KeyError(name)


def _kind(method: Method) -> str:
    """The name of a method, and of the one that it is around: LowBit(HashingTrick)."""
    inner = getattr(method, "of", None)
    return f"{type(method).__name__}({_kind(inner)})" if isinstance(inner, Method) else type(method).__name__


def _choose(sites: Sequence[Site], methods: Mapping[str, Method]) -> dict[Site, dict[str, Method]]:
    """For each site the methods of its tables that are to be compressed; `Full()` and unmatched tables are left out."""
    names = {(site, table): site.names(table) for site in sites for table in site.tables}
    for pattern, method in methods.items():
        if not isinstance(method, Method):
            raise TypeError(
                f"methods[{pattern!r}] must be a method's configuration, such as embcomp.HashingTrick(rows=1000), "
                f"got {method!r}"
            )
        if pattern != "*" and not any(fnmatchcase(name, pattern) for all_names in names.values() for name in all_names):
            known = [all_names[0] for all_names in names.values()]
            raise ValueError(f"pattern {pattern!r} matches no table; the tables are {known}")
    if not names:
        raise ValueError("the model has no embedding table that compress_ knows")
    chosen: dict[Site, dict[str, Method]] = {site: {} for site in sites}
    homes: dict[int, set[int]] = {}
    for (site, table), all_names in names.items():
        method = next((m for p, m in methods.items() if any(fnmatchcase(name, p) for name in all_names)), None)
        if method is None or isinstance(method, Full):
            continue
        chosen[site][table] = method
        home = homes.setdefault(id(method), set())
        home.add(0 if isinstance(site, TorchSite) else id(site))
        if method.shares_store and len(home) > 1:
            raise ValueError(
                f"table {table!r}: one {type(method).__name__} cannot share its store between torchrec collections or "
                "with torch modules; give each collection an instance of its own"
            )
    return chosen


def _torch_swaps(
    sites: Sequence[TorchSite],
    chosen: Mapping[Site, Mapping[str, Method]],
    moments: Mapping[Site, Mapping[str, Moments]],
) -> list[_Swap]:
    """Modules of plain torch, together where one method instance serves several."""
    groups: dict[int, list[TorchSite]] = {}
    for site in sites:
        groups.setdefault(id(chosen[site][site.paths[0]]), []).append(site)
    swaps = []
    for members in groups.values():
        method = chosen[members[0]][members[0].paths[0]]
        plan = method.plan([site.tables[site.paths[0]] for site in members])
        like = {(site.module.weight.device, site.module.weight.dtype) for site in members}
        if method.shares_store and len(like) > 1:
            raise ValueError(
                f"tables {[site.paths[0] for site in members]} share a store, but differ in device or dtype"
            )
        stores: dict[str, PlainStore] = {}
        parts, replacements = [], []
        drawn = {
            name: pooled(
                moments[site][part.table.name]
                for site, part in zip(members, plan.tables, strict=True)
                if any(chunk.store == name for chunk in part.chunks)
            )
            for name in plan.stores
        }
        for site, part in zip(members, plan.tables, strict=True):
            old = site.module
            for chunk in part.chunks:
                if chunk.store not in stores:
                    store = plan.stores[chunk.store]
                    check_floats(store, site.paths[0])
                    home = old.weight.device, old.weight.dtype
                    stores[chunk.store] = PlainStore(store, old.sparse, *home, like=drawn[chunk.store])
            parts.append(_Part(site, method, part))
            replacements.append((site, site.replacement(method, plan, part, stores)))
        swaps.append(_Swap(parts, {name: store.weight for name, store in stores.items()}, replacements))
    return swaps


def _torchrec_swaps(
    sites: Sequence[Site], chosen: Mapping[Site, Mapping[str, Method]], moments: Mapping[Site, Mapping[str, Moments]]
) -> list[_Swap]:
    """Collections, each whole: tables without a method go along as they are."""
    swaps = []
    for site in sites:
        from embcomp.torchrec.site import TorchrecSite, stores_of

        assert isinstance(site, TorchrecSite)
        new = site.replacement(chosen[site], moments[site])
        plans = {output.plan.table.name: output.plan for output in new.assemble.outputs}
        parts = [_Part(site, chosen[site].get(name, Full()), plan) for name, plan in plans.items()]
        swaps.append(_Swap(parts, stores_of(new), [(site, new)]))
    return swaps


def _check_trained(sites: Sequence[Site]) -> None:
    empty = [name for site in sites for name in site.tables if site.weight(name).is_meta]
    if empty:
        raise ValueError(f"tables {empty} are on the meta device and hold nothing to start from: use init='fresh'")


def _check_fitted(swap: _Swap) -> None:
    codecs = swap.codecs()
    for part in swap.parts:
        combines = type(part.plan.combiner).start_ is not Combiner.start_
        if not isinstance(part.method, Full) and not combines and not part.stores & codecs.keys():
            raise ValueError(
                f"table {part.name!r}: {_kind(part.method)} learns nothing beside its rows, so nothing is left "
                "to fit; use init='warm' and train on, or a method that learns codes, steps or a map"
            )


def _check_not_frozen(sites: Sequence[Site], chosen: Mapping[Site, Mapping[str, Method]]) -> None:
    for site in sites:
        for name in chosen[site]:
            weight = site.weight(name)
            if not weight.requires_grad and not weight.is_meta:
                raise ValueError(
                    f"cannot compress {name!r}: its weight is frozen (requires_grad=False), and fresh rows would stay "
                    "random; pass init='warm', unfreeze it, or exclude the table with embcomp.Full()"
                )


def _moments(site: Site, replaced: Collection[str]) -> dict[str, Moments]:
    """The mean and the deviation of each weight; those of `nn.Embedding` for an empty one (meta)."""
    found = {}
    for name in site.tables:
        weight, padding = site.weight(name), getattr(site.module, "padding_idx", None)
        found[name] = Moments() if weight.is_meta else moments_of(weight, padding)
        if name in replaced and not found[name].finite:
            raise ValueError(
                f"cannot compress {name!r}: its weight holds NaN or infinite numbers; initialise it first, or "
                "exclude the table with embcomp.Full()"
            )
    return found


def _checked_counts(sites: Sequence[Site], counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Counts by table name, each non-negative and of the table's length."""
    tables = {name: (table, site.names(name)) for site in sites for name, table in site.tables.items()}
    result = {}
    for given, values in counts.items():
        found = [table for table, names in tables.values() if given in names]
        if not found:
            raise ValueError(f"counts names {given!r}, which is no table to compress; these are {sorted(tables)}")
        for table in found:
            if values.shape != (table.num_embeddings,):
                raise ValueError(
                    f"counts[{given!r}] has shape {list(values.shape)}, but the table has {table.num_embeddings} ids"
                )
            if not bool(((values >= 0) & values.isfinite()).all()):
                raise ValueError(f"counts[{given!r}] has negative, infinite or NaN entries")
            result[table.name] = values
    return result
