"""The report of `compress_` about the tables that it swapped."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from embcomp.formats import grouped, text_table
from embcomp.methods.base import Method
from embcomp.nn.table import CompressedTable
from embcomp.notes import note
from embcomp.sizes import nbytes, shares_of
from embcomp.swaps import Part, Swap


@dataclass(frozen=True)
class TableReport:
    """One table before and after. The bytes include its maps and its share of a shared store.

    Attributes:
        name: the name of the table.
        method: the name of its method.
        rows: the number of rows of the stores that it reads.
        bytes_before: the bytes of the replaced weight.
        bytes_after: the bytes during training, without optimizer state; equal to `training_nbytes`.
        served_nbytes: the bytes when served.

    `note` says whether the table became larger, and whether ids of a small table no longer have different vectors.

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
        """The factor by which the table is smaller when served."""
        return self.bytes_before / max(1, self.served_nbytes)


@dataclass(frozen=True)
class CompressionReport:
    """The result of `compress_`; `print(report)` shows it as a table.

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
        """The factor by which all tables together are smaller when served."""
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
    """The cells of a line, from the bytes on."""
    sizes = (report.bytes_before, report.training_nbytes, report.served_nbytes)
    return *map(grouped, sizes), f"{report.ratio:.1f}x"


def lines_of(swap: Swap) -> Iterator[TableReport]:
    """Yield the report of each table; the bytes of a shared store are split in proportion to the tables it replaces.

    A map that several tables share is counted for the first of them.
    """
    before = {part.name: part.weight.nbytes for part in swap.parts}
    codecs, replacements = swap.codecs(), dict(swap.replacements)
    dims = {name: codecs[name][1].dim if name in codecs else s.shape[1] for name, s in swap.stores.items()}
    training, served = dict.fromkeys(before, 0), dict.fromkeys(before, 0)
    for store, readers in swap.readers.items():
        size = in_service = swap.stores[store].nbytes
        if store in codecs:
            codec = codecs[store][1]
            size, in_service = size + nbytes(codec), codec.served_nbytes
        names = [part.name for part in readers]
        weights = [before[name] for name in names]
        shares = zip(names, shares_of(size, weights), shares_of(in_service, weights), strict=True)
        for name, of_size, of_service in shares:
            training[name] += of_size
            served[name] += of_service
    counted: set[int] = set()
    for part in swap.parts:
        maps = [buffer for buffer in _beside_rows(replacements[part.holder], part) if id(buffer) not in counted]
        counted |= {id(buffer) for buffer in maps}
        beside, full = sum(buffer.nbytes for buffer in maps), before[part.name]
        after, in_service = training[part.name] + beside, served[part.name] + beside
        rows = sum(swap.stores[store].shape[0] for store in part.stores)
        noted = note(part.plan, dims, part.padding_idx, full, in_service)
        yield TableReport(part.name, kind(part.method), rows, full, after, in_service, noted)


def _beside_rows(new: nn.Module, part: Part) -> list[Tensor]:
    """The tensors that are stored for a table beside its rows, with the module that replaces it."""
    own = [new.padding_vector] if isinstance(new, CompressedTable) else []
    combiner = part.plan.combiner
    kept = (*part.plan.encoder.buffers(), *combiner.parameters(), *combiner.buffers(), *own)
    return [tensor for tensor in kept if tensor is not None]


def kind(method: Method) -> str:
    """The name of a method, with that of the method it wraps: LowBit(HashingTrick)."""
    inner = getattr(method, "of", None)
    return f"{type(method).__name__}({kind(inner)})" if isinstance(inner, Method) else type(method).__name__
