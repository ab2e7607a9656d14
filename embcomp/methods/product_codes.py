"""ProductCodes: the rows of any method as product codes: a code for each part of a row, and small code books."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

import torch
from torch import Tensor

from embcomp.codecs.product import Product, bits_of
from embcomp.methods.around import Around, check_not_coded, settings_around
from embcomp.methods.base import (
    FLOAT_BYTES,
    Ladder,
    Method,
    Plan,
    Sizes,
    Store,
    Table,
    TablePlan,
    check_counts,
    config_around,
    per_table,
)
from embcomp.methods.full import Full
from embcomp.methods.moved_rows import MovedRows, Place, ranks_nbytes
from embcomp.methods.reads import reads_of, vector_stores
from embcomp.settings import Share, Within

MOST_CODES = 256
Codes = Annotated[int, Within(1, MOST_CODES, text="from 1 to 256")]


@dataclass(frozen=True, kw_only=True, eq=False)
class ProductCodes(Around):
    """A method that stores another method's rows as learned product codes (Chen et al. 2020, arXiv 1908.09756).

    A row w is cut into parts, and each part is replaced by the nearest vector of its book, c_j = argmin_k |w_j -
    B_j[k]|; the vector is [B_1[c_1], ..., B_parts[c_parts]] (differentiable product quantisation, DPQ-VQ). In training,
    float rows and books are stored, and gradients go straight through; codes and books are served. `init="fit"` or
    "warm" fits the books to a trained table by k-means. With `hot` the method is multi-granular (MGQE, Kang et al.
    2020, arXiv 2002.08530): rows that are read often choose among all codes, the others among the first `cold_codes`.

    Args:
        parts: the number of parts of a row; must divide its width.
        codes: the number of vectors in a book, 1 to 256.
        of: the method whose rows are coded.
        share_books: "table" for separate books of each store, "all" for books that the tables of one instance share;
            their rows are then in one store.
        hot: the share of the rows that choose among all codes; by default all rows do.
        cold_codes: the number of codes that the other rows choose from.
        counts: with `hot`, how often each id occurs in training, [num_embeddings], or a mapping from table names to
            such tensors.
        small: "refuse" to raise for a table with fewer rows than codes, "cap" to reduce its codes.
        balanced: True to fit books to a trained table so that all codes are used about equally often (RepCONC, Zhan et
            al. 2022, arXiv 2110.05789); training then goes on as without.

    Raises:
        ValueError: the parts do not divide a width, there are more codes than rows, the rows of the method inside are
            already coded, or `hot` is used around a method whose tables share rows.

    Example:
        >>> import torch, embcomp
        >>> emb = embcomp.nn.CompressedEmbedding(10_000, 16, embcomp.ProductCodes(parts=8, codes=16))
        >>> emb(torch.tensor([3, 7])).view(2, 8, 2).shape  # of 16 vectors of 2 values each
        torch.Size([2, 8, 2])
        >>> embcomp.served_nbytes(emb)  # 8 codes of 4 bits for each id, and the books
        41024
    """

    parts: Annotated[int, Within(1)]
    codes: Annotated[int, Within(1, MOST_CODES, text="from 1 to 256")]
    of: Method = field(default_factory=Full)
    share_books: Literal["table", "all"] = "table"
    hot: Share | None = None
    cold_codes: Annotated[int, Within(1, MOST_CODES, text="from 1 to 256")] | None = None
    counts: Tensor | Mapping[str, Tensor] | None = field(default=None, repr=False)
    small: Literal["refuse", "cap"] = "refuse"
    balanced: bool = False

    def __post_init__(self) -> None:
        if (self.hot is None) != (self.cold_codes is None):
            raise ValueError(
                f"ProductCodes: hot={self.hot} and cold_codes={self.cold_codes} belong together: the share of the rows "
                "with all codes, and the number of codes of the others; give both or neither"
            )
        if self.cold_codes is not None and not self.cold_codes <= self.codes:
            raise ValueError(f"ProductCodes: cold_codes={self.cold_codes} must be at most codes={self.codes}")
        if self.hot is not None and self.counts is None:
            raise ValueError(f"ProductCodes: hot={self.hot} needs the counts of the ids")

    @property
    def shares_store(self) -> bool:
        """True if the books are shared, or the method inside shares its store."""
        return super().shares_store or self.share_books == "all"

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        return self._coded_sizes(self.of.sizes(tables, group), group)

    def _coded_sizes(self, sizes: Sizes, group: str = "shared") -> Sizes:
        stores = {name: store for name, (store, _) in self._coded(sizes.stores, group).items()}
        vectors = vector_stores(sizes.stores).values()
        ranks = 0 if self.hot is None else sum(ranks_nbytes(store.rows) for store in vectors)
        return dataclasses.replace(sizes, stores=stores, maps=sizes.maps + ranks)

    def _coded(self, stores: Mapping[str, Store], group: str) -> dict[str, tuple[Store, list[str]]]:
        """The coded stores, each with the names of the stores whose rows it holds."""
        vectors = vector_stores(stores)
        for name, store in vectors.items():
            self._check(name, store)
        plain = {name: (store, [name]) for name, store in stores.items() if name not in vectors}
        if self.share_books == "table":
            return plain | {name: (self._store([name], [store]), [name]) for name, store in vectors.items()}
        alike: dict[Store, list[str]] = {}
        for name, store in vectors.items():
            alike.setdefault(dataclasses.replace(store, rows=1), []).append(name)
        return plain | {
            f"{group}_{number}" if number else group: (self._store(names, [stores[n] for n in names]), names)
            for number, names in enumerate(alike.values())
        }

    def _check(self, name: str, store: Store) -> None:
        check_not_coded("ProductCodes", name, store)
        if store.dim % self.parts:
            raise ValueError(
                f"table {name!r}: parts={self.parts} does not divide its rows of {store.dim} values; choose a divisor "
                f"of {store.dim}"
            )
        if self.hot is not None and self.of.shares_store:
            raise ValueError(
                f"table {name!r}: hot={self.hot} is for methods whose tables have rows of their own, and those of "
                f"{type(self.of).__name__} share theirs; leave hot, cold_codes and counts out"
            )

    def _store(self, names: Sequence[str], members: Sequence[Store]) -> Store:
        """Merge the rows of all members into one store with a coding."""
        rows, hot = sum(store.rows for store in members), sum(self._hot(store) for store in members)
        cold = min(self.cold_codes or self.codes, rows - hot)
        codes = min(self.codes, cold + hot)
        if self.small == "refuse" and codes < self.codes:
            alone = len(names) == 1
            whose, out = (f"table {names[0]!r}", "it") if alone else (f"tables {list(names)}", "them")
            few = f"{rows} rows" if self.hot is None else f"{hot} hot and {rows - hot} cold rows"
            share = "" if self.shares_store else "share the books (share_books='all'), "
            raise ValueError(
                f"{whose}: {self.codes} codes for {'its' if alone else 'their'} {few} are more codes than rows; choose "
                f"fewer codes, leave {out} out, {share}or take small='cap'"
            )
        hot_and_cold = () if self.hot is None else (hot, cold)
        coding = Product(self.parts, codes, *hot_and_cold, balanced=self.balanced)
        return dataclasses.replace(members[0], rows=rows, coding=coding)

    def _hot(self, store: Store) -> int:
        """The number of hot rows of a store."""
        return 0 if self.hot is None else int(self.hot * store.rows)

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        inner = self.of.plan(tables, group)
        coded = self._coded(inner.stores, group)
        hot = {} if self.hot is None else self._hot_rows(inner)
        places, home = {}, {}
        for name, (_, members) in coded.items():
            first_hot, first = 0, sum(int(hot[member].sum()) for member in members if member in hot)
            for member in members:
                own = int(hot[member].sum()) if member in hot else 0
                places[member], home[member] = Place(first, hot.get(member), first_hot), name
                first_hot, first = first_hot + own, first + inner.stores[member].rows - own
        stores = {name: store for name, (store, _) in coded.items()}
        return Plan(stores, [self._moved(table_plan, places, home) for table_plan in inner.tables])

    def _hot_rows(self, plan: Plan) -> dict[str, Tensor]:
        """The masks of hot rows of each store, bool [rows]: the rows that are read most, by the ids' counts."""
        masks, vectors = {}, vector_stores(plan.stores)
        for table_plan in plan.tables:
            counts = check_counts(per_table(self.counts, table_plan.table, "counts"), table_plan.table)
            for name, reads in reads_of(table_plan, counts, vectors).items():
                most = torch.argsort(reads, descending=True, stable=True)[: self._hot(vectors[name])]
                masks[name] = torch.zeros_like(reads, dtype=torch.bool).index_fill_(0, most, True)
        return masks

    def _moved(self, plan: TablePlan, places: Mapping[str, Place], home: Mapping[str, str]) -> TablePlan:
        """The plan of a table whose rows are at these places."""
        config = config_around(self.config(without=["counts"]), plan, plan.table)
        stores = [chunk.store for chunk in plan.chunks]
        encoder = plan.encoder
        encoder.config = config
        if any(places[name].hot is not None or places[name].first for name in stores):
            encoder = MovedRows(encoder, config, plan.table, places, stores)
        chunks = tuple(dataclasses.replace(chunk, store=home[chunk.store]) for chunk in plan.chunks)
        return TablePlan(plan.table, encoder, chunks, plan.combiner)

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return the ladder of the method inside, wrapped; around `Full` and without `codes`, the sizes are the codes.

        Args:
            tables: the tables to compress together.
            nbytes: the budget in bytes.
            fixed: settings of ProductCodes (`small` is "cap" by default), settings of the method inside, and `of`: the
                class of that method, its name, or a configuration whose `rows` are chosen anew (by default `Full`).
        """
        inner, own, fixed = settings_around(cls, {"small": "cap", **fixed})
        if "codes" not in own and inner is Full:
            return Ladder(
                lambda codes: cls(codes=codes, **own),
                lambda codes: cls(codes=codes, **own).sizes(tables),
                least=own.get("cold_codes") or 1,
                most=MOST_CODES,
            )
        if "counts" in own and "counts" in {f.name for f in dataclasses.fields(inner)}:
            fixed["counts"] = own["counts"]
        outer = cls(**own)
        values = max(table.embedding_dim for table in tables) // outer.parts * FLOAT_BYTES * 8 // bits_of(outer.codes)
        inside = inner.ladder(tables, nbytes * max(1, values), **inner.checked_settings(fixed))
        return inside.around(lambda of: dataclasses.replace(outer, of=of), outer._coded_sizes)
