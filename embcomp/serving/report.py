"""The report of `export`, in bytes."""

from dataclasses import dataclass
from pathlib import Path

from embcomp.formats import grouped, text_table
from embcomp.holders import HeldStore
from embcomp.serving.swap import Served, names_of
from embcomp.sizes import nbytes, shares_of


@dataclass(frozen=True)
class TableExport:
    """One table, before and after. Bytes include its map and its share of a shared store, in the file as in memory.

    Attributes:
        dtypes: the forms of its stores, each once: a dtype, or the bits of a table that was trained in them.
        bytes_full: the bytes of one float32 row for each id; None for an open id space.
        bytes_trained: the bytes of the training form, `embcomp.training_nbytes`.
        bytes_exported: the bytes of the served form.

    Example:
        >>> import torch, embcomp
        >>> model = torch.nn.Sequential(embcomp.nn.CompressedEmbedding(1000, 32, embcomp.HashingTrick(rows=100)))
        >>> (table,) = embcomp.export(model, "model.pt2", (torch.arange(9),), dtype="int8").tables
        >>> table.name, table.dtypes, table.bytes_full, table.bytes_trained, table.bytes_exported
        ('0', ('int8',), 128000, 12808, 4008)
    """

    name: str
    method: str
    dtypes: tuple[str, ...]
    rows: int
    bytes_full: int | None
    bytes_trained: int
    bytes_exported: int

    @property
    def ratio(self) -> float:
        """The factor by which the table is smaller than its training form."""
        return self.bytes_trained / max(1, self.bytes_exported)


@dataclass(frozen=True)
class ExportReport:
    """The result of `export`; `print(report)` shows it as a table.

    Attributes:
        tables: the report of each table.
        path: the file.
        bytes_file: the size of the file: the tables, the other parameters and the program.
        inputs: the inputs of the program, as text.
        needs: the packages to import before the file is loaded; ("torch",) if only torch is needed.

    Example:
        >>> import torch, embcomp
        >>> model = torch.nn.Sequential(embcomp.nn.CompressedEmbedding(1000, 32, embcomp.HashingTrick(rows=100)))
        >>> report = embcomp.export(model, "model.pt2", (torch.arange(9),), dtype="int4")
        >>> report.bytes_full, report.bytes_trained, report.bytes_exported, report.needs
        (128000, 12808, 2008, ('torch',))
    """

    tables: list[TableExport]
    path: Path
    bytes_file: int
    inputs: str
    needs: tuple[str, ...]

    @property
    def bytes_full(self) -> int | None:
        """The bytes of all full tables; None if a table has an open id space."""
        sizes = [table.bytes_full for table in self.tables]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def bytes_trained(self) -> int:
        return sum(table.bytes_trained for table in self.tables)

    @property
    def bytes_exported(self) -> int:
        return sum(table.bytes_exported for table in self.tables)

    @property
    def ratio(self) -> float:
        """The factor by which all tables together are smaller than their training form."""
        return self.bytes_trained / max(1, self.bytes_exported)

    def __str__(self) -> str:
        header = ("table", "method", "dtype", "rows", "bytes full", "bytes trained", "bytes exported", "than trained")
        lines = [(t.name, t.method, ", ".join(t.dtypes), grouped(t.rows), *_sizes(t)) for t in self.tables]
        return "\n".join([
            text_table(header, [*lines, ("total", "", "", "", *_sizes(self))], left=3),
            f"{self.path}: {grouped(self.bytes_file)} bytes",
            f"import {', '.join(self.needs)}; program = torch.export.load({str(self.path)!r}).module()",
            f"program({self.inputs})",
        ])  # fmt: skip


def _sizes(of: TableExport | ExportReport) -> tuple[str, str, str, str]:
    full = "–" if of.bytes_full is None else grouped(of.bytes_full)
    return full, grouped(of.bytes_trained), grouped(of.bytes_exported), f"{of.ratio:.1f}x"


def table_lines(served: Served) -> list[TableExport]:
    """Report each table; the bytes of a store that several tables read are split in proportion to their full sizes.

    A map that several tables share is counted for the first of them.
    """
    trained, exported = _of_stores(served)
    lines = []
    counted: set[int] = set()
    for position, table in enumerate(served.tables):
        buffers = [] if table.method == "Full" or table.plan is None else list(table.plan.encoder.buffers())
        beside = sum(buffer.nbytes for buffer in buffers if id(buffer) not in counted)
        beside += 0 if table.plan is None else nbytes(table.plan.combiner)
        counted |= {id(buffer) for buffer in buffers}
        dtypes: list[str] = []
        for rows in table.rows:
            store = served.stores.get(id(rows))
            dtypes.append(str(rows.dtype).removeprefix("torch.") if store is None else store.kind)
        ids, dim = table.table.num_embeddings, table.table.embedding_dim
        full = None if ids is None else 4 * ids * dim
        count = sum(rows.shape[0] for rows in table.rows)
        kinds = tuple(dict.fromkeys(dtypes))
        after = trained[position] + beside, exported[position] + beside
        lines.append(TableExport(names_of(table)[0], table.method, kinds, count, full, *after))
    return lines


def _of_stores(served: Served) -> tuple[list[int], list[int]]:
    """The bytes of each table's stores, its share of shared ones: while they train, and exported."""
    readers: dict[int, list[tuple[int, HeldStore]]] = {}
    for position, table in enumerate(served.tables):
        for held in table.stores.values():
            readers.setdefault(id(held.weight), []).append((position, held))
    full = [(table.table.num_embeddings or 1) * table.table.embedding_dim for table in served.tables]
    trained, exported = [0] * len(full), [0] * len(full)
    for own in readers.values():
        held, store = own[0][1], served.stores.get(id(own[0][1].weight))
        before = held.weight.nbytes + (0 if held.codec is None else nbytes(held.codec))
        weights = [full[position] for position, _ in own]
        shares = shares_of(before, weights), shares_of(held.weight.nbytes if store is None else store.nbytes, weights)
        for (position, _), of_trained, of_exported in zip(own, *shares, strict=True):
            trained[position] += of_trained
            exported[position] += of_exported
    return trained, exported
