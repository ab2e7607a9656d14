"""The plan that a method makes for tables: stores (row -> vector), and how the ids of each table reach them."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

from embcomp.codecs.base import Coding
from embcomp.methods.combiners import Combiner
from embcomp.methods.encoder import Encoder
from embcomp.methods.table import Table

FLOAT_BYTES = 4
KEY_BYTES = 8
_LARGE = 2**32

Count: TypeAlias = Literal["served", "training"]
"""The form whose bytes a budget limits: served or training."""


@dataclasses.dataclass(frozen=True)
class Store:
    """A plain table of `rows` vectors of `dim` floats, described by numbers alone, so that a budget can price it.

    Attributes:
        init: the initial rows. "table": the combined vector gets the mean and the deviation of the replaced table.
            "unit" and "factor": the two factors of a product that gets them; the first has mean square 1. "centred":
            the deviation alone, the mean is up to the combiner. "chain" and "chain_middle": a row, a matrix and a row
            whose product gets them. "mean": the mean alone, in every place. "ones": all 1 (weights).
        summands: the number of rows of this store that add up to one coordinate of a vector; of a chain its rank.
        coding: the coding of the rows, which decodes them into the served vectors; None serves the rows as they are.
    """

    rows: int
    dim: int
    init: str = "table"
    summands: int = 1
    coding: Coding | None = None

    @property
    def width(self) -> int:
        """The number of columns of a row: those of its vector, and those that a coding adds."""
        return self.dim + (0 if self.coding is None else self.coding.columns(self.dim))

    def training_nbytes(self, float_bytes: int = FLOAT_BYTES) -> int:
        """The bytes of the training form: rows, and the parameters of the codec."""
        if self.coding is None:
            return self.rows * self.width * float_bytes
        own = self.coding.row_nbytes(self.dim, float_bytes)
        return self.rows * own + self.coding.nbytes(self.rows, self.dim, float_bytes)

    def served_nbytes(self, float_bytes: int = FLOAT_BYTES) -> int:
        """The bytes of the served form; without a coding those of the rows."""
        if self.coding is None:
            return self.training_nbytes(float_bytes)
        return self.coding.served_nbytes(self.rows, self.dim)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A read from one store: `lookups` rows per id, added up, each times a fixed weight if `weighted`."""

    store: str
    lookups: int = 1
    weighted: bool = False


@dataclasses.dataclass(frozen=True)
class TablePlan:
    """The encoder, chunks and combiner by which one table's ids become vectors."""

    table: Table
    encoder: Encoder
    chunks: tuple[Chunk, ...]
    combiner: Combiner

    @property
    def weighted(self) -> bool:
        return any(chunk.weighted for chunk in self.chunks)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The stores of a group of tables, and how each table reads them."""

    stores: dict[str, Store]
    tables: list[TablePlan]

    def embedding_dim(self, table: TablePlan) -> int:
        return table.combiner.dim([self.stores[chunk.store].dim for chunk in table.chunks])

    @property
    def sizes(self) -> "Sizes":
        """The sizes of the plan as numbers; parts that tables share count once."""
        maps = {id(buffer): buffer.nbytes for table in self.tables for buffer in table.encoder.buffers()}
        for table in self.tables:
            maps |= {id(buffer): buffer.nbytes for buffer in table.combiner.buffers()}
        learned = {id(weight): weight.numel() for table in self.tables for weight in table.combiner.parameters()}
        return Sizes(self.stores, sum(maps.values()), sum(learned.values()))

    def nbytes(self, float_bytes: int = FLOAT_BYTES) -> int:
        """The bytes of the training form, as `training_nbytes`."""
        return self.training_nbytes(float_bytes)

    def training_nbytes(self, float_bytes: int = FLOAT_BYTES) -> int:
        """The bytes of the training form: rows, codecs, combiners, maps, keys; parts that tables share count once."""
        return self.sizes.nbytes("training", float_bytes)

    def served_nbytes(self, float_bytes: int = FLOAT_BYTES) -> int:
        """The bytes of the served form: packed rows, combiners, maps, keys; parts that tables share count once."""
        return self.sizes.nbytes("served", float_bytes)


def check_size(sizes: "Sizes", tables: Iterable[Table]) -> None:
    """Raise ValueError for sizes above 4 GiB that are also above twice those of the full tables.

    It is asked before memory is taken. Smaller sizes only make `compress_` warn. Open id spaces have no full tables.
    """
    table_list = list(tables)
    if any(table.num_embeddings is None for table in table_list):
        return
    full = sum((table.num_embeddings or 0) * table.embedding_dim for table in table_list) * FLOAT_BYTES
    own = sizes.nbytes("training")
    if own > max(2 * full, _LARGE):
        raise ValueError(
            f"tables {[table.name for table in table_list]}: these settings take {own:,} bytes, and the full tables "
            f"{full:,}: choose smaller settings, or embcomp.Full()"
        )


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of a plan as numbers alone, so that a budget or a planner can price many plans.

    Attributes:
        stores: the stores by name.
        maps: the bytes of keys and maps.
        learned: the number of values that combiners learn.

    Example:
        >>> import embcomp
        >>> sizes = embcomp.HashingTrick(rows=50).sizes([Table("item", 1000, 16)])
        >>> sizes.stores, sizes.nbytes() == 4 * 16 * 50 + 8
        ({'item': Store(rows=50, dim=16, init='table', summands=1, coding=None)}, True)
    """

    stores: Mapping[str, Store]
    maps: int = 0
    learned: int = 0

    def nbytes(self, count: Count = "served", float_bytes: int = FLOAT_BYTES) -> int:
        """The bytes of the served or of the training form."""
        stores = (
            store.served_nbytes(float_bytes) if count == "served" else store.training_nbytes(float_bytes)
            for store in self.stores.values()
        )
        return sum(stores) + self.maps + self.learned * float_bytes
