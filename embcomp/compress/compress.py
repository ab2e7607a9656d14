"""`compress_`: swap the tables of a model in place, and report the bytes saved."""

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from embcomp.additions import Marks, check_free
from embcomp.codecs.base import Codec
from embcomp.compress.caches import drop_outputs
from embcomp.compress.regularised import penalties, put_rows
from embcomp.compress.report import CompressionReport, TableReport, kind, lines_of
from embcomp.compress.warm import warm_start
from embcomp.holders import coded_tables
from embcomp.initial_rows import Moments, moments_of
from embcomp.match import match
from embcomp.methods.base import Combiner, Method
from embcomp.methods.full import Full
from embcomp.notes import warn
from embcomp.optimizers import held_optimizers
from embcomp.references import check_not_held
from embcomp.settings import checked
from embcomp.swaps import Plain, Swap, plain_holders

__all__ = ["CompressionReport", "TableReport", "compress_"]


def compress_(
    model: nn.Module,
    methods: Mapping[str, Method] | Method,
    *,
    init: Literal["fresh", "warm", "fit"] = "fresh",
    counts: Mapping[str, Tensor] | None = None,
) -> CompressionReport:
    """Swap the embedding tables of a model for compressed ones, in place.

    `nn.Embedding`, `nn.EmbeddingBag` and torchrec's EmbeddingBagCollection and EmbeddingCollection are swapped. A
    module that is used in two places stays one module. An output layer (`nn.Linear`) that holds a table's weight then
    reads the compressed table. Make the optimizer after this call: an earlier one still holds the old tables. An
    optimizer that the model itself keeps, and that has not stepped yet, is given the new parameters.

    Args:
        model: the model, changed in place; nothing changes if an error is raised.
        methods: a method for each table. Keys are glob patterns over module paths ("user.embedding") and torchrec table
            names; the first match wins, and a table that no key matches is left alone. A single method applies to all
            tables.
        init: the start of the rows. "fresh" draws rows so that the vectors have the mean and the standard deviation of
            the replaced weights (of all tables together if they share a store). "warm" starts each row at the
            (count-weighted) mean of the trained vectors that map to it, refined by least squares where an id adds up
            several rows, and fits what a method learns beside its rows (code books, steps, matrices) to these rows.
            "fit" does the same for a model that is served without further training, and refuses methods that learn
            nothing beside their rows.
        counts: the number of times each id occurs, [num_embeddings] by table name, for init="warm" or "fit"; tables
            without counts weight all ids equally.

    Returns:
        The bytes before and after, table by table.

    Raises:
        TypeError: `methods` or one of its values is not a method's configuration.
        ValueError: a pattern matches no table; counts are given with init="fresh"; a method cannot compress a table, or
            has nothing to fit; or a table cannot be swapped because its weight is held elsewhere in the model, is
            frozen (fresh rows would never be trained) or not finite, uses `max_norm`, or because its module is sharded
            or a subclass with behavior of its own.

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
        raise ValueError("counts weight the ids of a warm start: pass init='warm' with them, or leave them out")
    holders = plain_holders(model)
    chosen = _choose(holders, _by_pattern(methods))
    touched = [holder for holder in holders if chosen[holder]]
    for holder in touched:
        holder.check(chosen[holder])
    owned = {id(weight): holder.paths[0] for holder in touched for weight in holder.module.parameters()}
    optimizers = held_optimizers(model, lambda tensor: owned.get(id(tensor)))
    penalised = penalties(model, lambda tensor: id(tensor) in owned)
    check_not_held(model, touched, penalised)
    weights = _checked_counts(touched, counts or {})
    if init != "fresh":
        _check_trained(touched)
    else:
        _check_not_frozen(touched, chosen)
    moments = {holder: _moments(holder, chosen[holder]) for holder in touched}
    swaps: list[Swap] = []
    for each in Plain.kinds:
        swaps += each.swaps([holder for holder in touched if type(holder) is each], chosen, moments)
    if init == "fit":
        for swap in swaps:
            _check_fitted(swap)
    fitted: list[tuple[Codec, Tensor]] = []
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
                fitted.append((codec, store))
        for name, store in swap.stores.items():
            if store.is_floating_point():
                store.requires_grad_(any(p.weight.requires_grad for p in swap.readers[name]))
            elif frozen := [p.name for p in swap.readers[name] if not p.weight.requires_grad]:
                raise ValueError(
                    f"cannot compress {frozen[0]!r}: its weight is frozen (requires_grad=False), and rows without a "
                    "float copy are always trained; take copy='float', or unfreeze it"
                )
        _freeze(swap)
    for codecs in dict.fromkeys(type(codec) for codec, _ in fitted):
        codecs.fit_together_([each for each in fitted if type(each[0]) is codecs])
    order = {name: position for position, name in enumerate(name for holder in holders for name in holder.tables)}
    lines = sorted((line for swap in swaps for line in lines_of(swap)), key=lambda line: order[line.name])
    replacements = [pair for swap in swaps for pair in swap.replacements]
    new = {id(old): list(module.parameters()) for holder, module in replacements for old in holder.module.parameters()}
    groups = [held.plan(new) for held in optimizers]
    marks = _marks(swaps)
    for holder, replacement in replacements:
        check_free(holder.attributes, replacement, f"cannot compress {holder.paths[0]!r}")
    warn([(line.name, line.note) for line in lines])  # before anything changes, as it may be an error
    drop_outputs(model, [holder.module for holder, _ in replacements])
    for holder, replacement in replacements:
        holder.put(model, replacement)
    marks.put()
    for held, parameters in zip(optimizers, groups, strict=True):
        held.put(parameters)
    steps = {id(parameter) for _, module in replacements for parameter in _of_codecs(module)}
    rows = {old: [p for p in parameters if id(p) not in steps] for old, parameters in new.items()}
    for attribute in penalised:
        put_rows(attribute, rows)
    return CompressionReport(lines)


def _freeze(swap: Swap) -> None:
    """Freeze what the vectors of frozen tables are computed with, beside their rows."""
    for part in swap.parts:
        if not part.weight.requires_grad:
            part.plan.combiner.requires_grad_(False)
    for name, (_, codec) in swap.codecs().items():
        if not any(part.weight.requires_grad for part in swap.readers[name]):
            codec.requires_grad_(False)


def _marks(swaps: Sequence[Swap]) -> Marks:
    """The marks of the weights, for the rows and the parameters of combiners that replace them."""
    marks = Marks()
    for swap in swaps:
        for part in swap.parts:
            rows = [swap.stores[name] for name in sorted(part.stores)]
            marks.add(part.weight, [*rows, *part.plan.combiner.parameters()], part.name)
    return marks


def _of_codecs(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of codecs, such as steps of grids, which penalties of tables do not reach."""
    for _, codec in coded_tables(module):
        yield from codec.parameters()


def _by_pattern(methods: object) -> Mapping[str, Method]:
    if isinstance(methods, Method):
        return {"*": methods}
    if not isinstance(methods, Mapping) or not all(isinstance(pattern, str) for pattern in methods):
        raise TypeError(
            "methods must be a method's configuration, such as embcomp.HashingTrick(rows=1000), or a mapping from "
            f"patterns to them, such as {{'item': embcomp.HashingTrick(rows=1000)}}; got {methods!r}"
        )
    return methods


def _choose(found: Sequence[Plain], methods: Mapping[str, Method]) -> dict[Plain, dict[str, Method]]:
    """Choose the method of each table to compress, by holder; unmatched tables and `Full()` are left out."""
    for pattern, method in methods.items():
        if not isinstance(method, Method):
            raise TypeError(
                f"methods[{pattern!r}] must be a method's configuration, such as embcomp.HashingTrick(rows=1000), "
                f"got {method!r}"
            )
    tables = [(holder, name) for holder in found for name in holder.tables]
    matched = match(methods, [holder.tables[name].names for holder, name in tables])
    if not tables:
        raise ValueError("the model has no embedding table that compress_ knows")
    chosen: dict[Plain, dict[str, Method]] = {holder: {} for holder in found}
    homes: dict[int, set[Hashable]] = {}
    for (holder, table), method in zip(tables, matched, strict=True):
        if method is None or isinstance(method, Full):
            continue
        chosen[holder][table] = method
        home = homes.setdefault(id(method), set())
        home.add(holder.home)
        if method.shares_store and len(home) > 1:
            raise ValueError(
                f"table {table!r}: one {type(method).__name__} cannot share its store between torchrec collections or "
                "with torch modules; give each collection its own instance"
            )
    return chosen


def _check_trained(found: Sequence[Plain]) -> None:
    empty = [name for holder in found for name in holder.tables if holder.tables[name].weight.is_meta]
    if empty:
        raise ValueError(f"tables {empty} are on the meta device and hold no values to start from: use init='fresh'")


def _check_fitted(swap: Swap) -> None:
    codecs = swap.codecs()
    for part in swap.parts:
        own = type(part.plan.combiner)
        combines = own.start_ is not Combiner.start_ or own.rows_of is not Combiner.rows_of
        learned = combines or part.method.learns_from_vectors
        if not isinstance(part.method, Full) and not learned and not part.stores & codecs.keys():
            raise ValueError(
                f"table {part.name!r}: {kind(part.method)} only learns rows, which need further training; "
                "use init='warm' and continue to train, or a method that learns codes, steps or a map"
            )


def _check_not_frozen(found: Sequence[Plain], chosen: Mapping[Plain, Mapping[str, Method]]) -> None:
    for holder in found:
        for name in chosen[holder]:
            weight = holder.tables[name].weight
            if not weight.requires_grad and not weight.is_meta:
                raise ValueError(
                    f"cannot compress {name!r}: its weight is frozen (requires_grad=False), and fresh rows would stay "
                    "random; pass init='warm', unfreeze it, or exclude the table with embcomp.Full()"
                )


def _moments(holder: Plain, replaced: Collection[str]) -> dict[str, Moments]:
    """The mean and the deviation of each weight; for a weight on the meta device those of `nn.Embedding`."""
    moments = {}
    for name in holder.tables:
        weight, padding = holder.tables[name].weight, getattr(holder.module, "padding_idx", None)
        moments[name] = Moments() if weight.is_meta else moments_of(weight, padding)
        if name in replaced and not moments[name].finite:
            raise ValueError(
                f"cannot compress {name!r}: its weight holds NaN or infinite numbers; initialise it first, or "
                "exclude the table with embcomp.Full()"
            )
    return moments


def _checked_counts(touched: Sequence[Plain], counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Check the counts and return them by table name: non-negative, one for each id of the table."""
    tables = {name: held for holder in touched for name, held in holder.tables.items()}
    result = {}
    for given, values in counts.items():
        named = [held.table for held in tables.values() if given in held.names]
        if not named:
            raise ValueError(f"counts names {given!r}, which is not a table to compress; these are {sorted(tables)}")
        for table in named:
            if values.shape != (table.num_embeddings,):
                raise ValueError(
                    f"counts[{given!r}] has shape {list(values.shape)}, but the table has {table.num_embeddings} ids"
                )
            if not bool(((values >= 0) & values.isfinite()).all()):
                raise ValueError(f"counts[{given!r}] has negative, infinite or NaN entries")
            result[table.name] = values
    return result
