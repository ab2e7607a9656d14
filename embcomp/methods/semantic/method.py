"""SemanticIds: the rows of an item follow from its content, not from its id, so that new items start warm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor

from embcomp.methods.base import (
    Chunk,
    Concat,
    Ladder,
    Method,
    Plan,
    Sizes,
    Store,
    Sum,
    Table,
    TablePlan,
    check_rows,
    per_table,
)
from embcomp.methods.semantic.encoder import SemanticEncoder
from embcomp.methods.semantic.item_codes import ItemCodes
from embcomp.methods.semantic.neighbour_rows import NeighbourRows
from embcomp.methods.semantic.reading import Reading, ranges_of
from embcomp.methods.semantic.support import Items, SupportReport, items_of, neighbours_of_new, owners_of
from embcomp.semantic_ids.neighbours import Neighbours
from embcomp.semantic_ids.pieces.base import Pieces
from embcomp.semantic_ids.pieces.vocabulary import CodeCount, Vocabulary
from embcomp.settings import ReadCount, RowCount, Share, Within

MOST_PIECES = 63  # a bit for each


@dataclass(frozen=True, kw_only=True, eq=False)
class SemanticIds(Method):
    """A method that shares rows by content (Singh et al. 2023, arXiv 2306.08121; Zheng et al. 2025, arXiv 2504.02137).

    The vector of an item combines the rows of its pieces: a tokenizer (`embcomp.semantic_ids`) makes codes from content
    vectors, and `pieces` says which parts of the codes read a row. Each piece owns a row if all fit into `rows`;
    otherwise coarse pieces do, and finer ones share the remaining rows by hashing. The tables that one instance matches
    read the same rows, and equal codes are stored once (for each width).

    A piece that no training item has is left out of the sum, because its row is untrained or belongs to another piece.
    For an item that does not occur in training, pieces that few training items have are also left out, because their
    rows describe those few items. Ids without any supported piece (without content, or beyond the codes) read as many
    hashed rows instead, as in `MultiHash`; `report` counts them.

    With `neighbours` an item that does not occur in training reads the rows that most training items of the nearest
    content read, each weighted by the share of them that read it: about the mean of their vectors. This serves new
    items better than their own few pieces (see the method's page), and takes about 3 bytes per row and new item.

    Args:
        codes: the codes, integers [num_embeddings, levels], -1 at all levels for an item without content; or a mapping
            from table names to such tensors. With `num_embeddings=None` ids beyond the codes read hashed rows.
        pieces: the rule of the pieces: `Unigram()`, `Ngram(n)`, `PrefixNgram(n)` or `SentencePieces(vocab_size)`
            (trained).
        rows: the number of rows of the pieces; with `hot` those of hot items are among them.
        combine: "sum" to add up the rows of the pieces, "concat" to put them side by side (they then divide
            embedding_dim).
        id_rows: the rows of a second table, read by one more look-up: with `counts` the most frequent items own one
            each and the others read none; without `counts` every id reads its hash. It serves items that deserve
            memorisation.
        hot: the share of `rows` that hot items own, in place of `id_rows`: with `counts`, the items that occur most own
            one row each beside their pieces, which read the others. It comes in sizes with `rows`. H2Rec (arXiv
            2512.10388) keeps both kinds of rows in a model; this is their sum, for any model.
        counts: the occurrences of each id in training, [num_embeddings], or a mapping from table names to such tensors;
            an item with a count is a training item. By default these are all items with codes or, with `vocabulary`,
            those whose pieces all have support.
        vocabulary: the support recorded when training began, which replaces that of `codes` and `counts`; give it if
            items were added since.
        min_support: the number of training items that must have a piece before an item outside training reads it; if it
            has no such piece, it reads the piece with the most support. Training items read all of their pieces. 0
            leaves no piece out.
        piece_dropout: the probability that an id in training is read as if it were new: only its pieces with
            min_support other items, or else the best one (none if no other item has its pieces), and without its id
            row.
        neighbours: `embcomp.semantic_ids.Neighbours.of(content, counts)` for items that do not occur in training, or a
            mapping from table names to such; only with combine="sum".
        neighbour_rows: the number of rows that such an item reads; by default as many as it has pieces. Every id then
            takes as many look-ups as the larger of the two numbers.
        codebook_size: the number of codes at each level; by default the largest code + 1, rounded up to a power of two.
        seed: the seed of the hashes; another seed gives other collisions.

    Example:
        >>> import torch, embcomp
        >>> codes = torch.tensor([[0, 1], [0, 2], [3, 1], [-1, -1]])  # of four items, the last without content
        >>> method = embcomp.SemanticIds(codes, pieces=embcomp.PrefixNgram(2), rows=20)
        >>> emb = embcomp.nn.CompressedEmbedding(4, 8, method)
        >>> emb(torch.arange(4)).shape, emb.encoder.fallbacks
        (torch.Size([4, 8]), 1)
    """

    shares_store: ClassVar[bool] = True

    codes: Tensor | Mapping[str, Tensor] = field(repr=False, kw_only=False)
    pieces: Pieces = field(kw_only=False)
    rows: RowCount = field(kw_only=False)
    combine: Literal["sum", "concat"] = "sum"
    id_rows: RowCount | None = None
    hot: Share | None = None
    counts: Tensor | Mapping[str, Tensor] | None = field(default=None, repr=False)
    vocabulary: Vocabulary | None = field(default=None, repr=False)
    min_support: Annotated[int, Within(0)] = 10
    piece_dropout: Share = 0.0
    neighbours: Neighbours | Mapping[str, Neighbours] | None = field(default=None, repr=False)
    neighbour_rows: ReadCount | None = None
    codebook_size: CodeCount | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.piece_dropout and not self.min_support:
            raise ValueError("SemanticIds: piece_dropout leaves out pieces below min_support, which must be at least 1")
        if self.neighbours is not None and self.combine != "sum":
            raise ValueError("SemanticIds: rows of neighbours are added up, which goes with combine='sum'")
        if self.neighbour_rows is not None and self.neighbours is None:
            raise ValueError("SemanticIds: neighbour_rows goes with neighbours, see semantic_ids.Neighbours.of")
        if self.hot:
            self._check_hot()

    def _check_hot(self) -> None:
        if self.id_rows is not None:
            raise ValueError(f"SemanticIds: hot={self.hot} already sets the rows that items own; leave out id_rows")
        if self.counts is None:
            raise ValueError("SemanticIds: hot items are those with the largest counts; give counts")
        if self.rows < 2:
            raise ValueError("SemanticIds: hot items and pieces need a row each; give 2 rows or more")

    @property
    def own_rows(self) -> int | None:
        """The rows that hot items own, or the rows of ids; None for neither."""
        if not self.hot:
            return self.id_rows
        counts = self.counts.values() if isinstance(self.counts, Mapping) else [self.counts]
        occurring = max(int((torch.as_tensor(each, device="cpu") > 0).sum()) for each in counts)
        return max(1, min(int(self.rows * self.hot), occurring))

    @property
    def piece_rows(self) -> int:
        """The rows that pieces read."""
        return self.rows - (self.own_rows or 0) if self.hot else self.rows

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        stores: dict[str, Store] = {}
        check_rows(self.rows, group)
        if self.own_rows is not None:
            check_rows(self.own_rows, f"{group}_id")
        widths = {table.embedding_dim for table in tables}
        plans: list[TablePlan] = []
        held: dict[Any, SemanticEncoder] = {}
        with torch.device("cpu"):  # maps are real even where rows are not
            for table in tables:
                home = group if len(widths) == 1 else f"{group}_{table.embedding_dim}"
                given = {"codes": self.codes, "counts": self.counts, "neighbours": self.neighbours}
                own = [id(per_table(value, table, name)) for name, value in given.items()]
                key = (home, table.num_embeddings, *own)
                plans.append(self._table(table, home, stores, held.get(key)))
                held.setdefault(key, cast(SemanticEncoder, plans[-1].encoder))
        return Plan(stores, plans)

    def _table(self, table: Table, home: str, stores: dict[str, Store], other: SemanticEncoder | None) -> TablePlan:
        """Plan one table, which holds the maps of another one of the same codes."""
        known = self._items(table)
        count = len(known.spans)
        if count > MOST_PIECES:
            raise ValueError(
                f"table {table.name!r}: {self.pieces} makes {count} pieces of an item, the most are {MOST_PIECES}; "
                "take longer pieces, or fewer levels"
            )
        parts = count + (self.own_rows is not None)
        concat = self.combine == "concat"
        if concat and table.embedding_dim % parts:
            raise ValueError(
                f"table {table.name!r}: embedding_dim {table.embedding_dim} is not a multiple of its {parts} parts; "
                "choose another, or combine='sum'"
            )
        dim, summands = (table.embedding_dim // parts, 1) if concat else (table.embedding_dim, parts)
        mixed = None if self.neighbours is None else self.neighbour_rows or count
        is_open = table.num_embeddings is None
        weighted = bool(self.piece_dropout) or is_open or mixed is not None or not bool(known.supported.all())
        stores[home] = Store(self.piece_rows, dim, summands=summands)
        chunks = [Chunk(home, 1, weighted)] * count if concat else [Chunk(home, max(count, mixed or 0), weighted)]
        owners = None
        if self.own_rows is not None:
            own = f"{home}_id_{table.name}" if isinstance(self.codes, Mapping) else f"{home}_id"
            owners = None if known.counts is None else owners_of(known.counts, self.own_rows, table)
            stores[own] = Store(self.own_rows, dim, summands=summands)
            chunks.append(Chunk(own, 1, weighted=owners is not None))
        items, levels = known.columns.shape
        encoder = SemanticEncoder(
            table,
            {**self.config(), "items": items, "levels": levels, "weighted": weighted},
            ItemCodes(known.columns, known.supported, known.as_new, owners, known.size)
            if other is None
            else other.items,
            self._reading(known, weighted),
            None if other is None else other.mixtures,
        )
        if mixed is not None:
            near = neighbours_of_new(per_table(self.neighbours, table, "neighbours"), known, table)
            if encoder.mixtures is None:
                dtype = None if is_open else torch.int32
                encoder.mixtures = NeighbourRows.of(near, encoder.content_pieces, mixed, self.piece_rows, dtype)
            encoder.config["new_items"] = encoder.mixtures.new_ids.numel()
        return TablePlan(table, encoder, tuple(chunks), Concat() if concat or len(chunks) == 1 else Sum())

    def _reading(self, known: Items, weighted: bool) -> Reading:
        return Reading(
            spans=tuple(known.spans),
            size=known.size,
            ranges=tuple(ranges_of(known.spans, known.size, self.piece_rows, self.pieces.one_namespace)),
            rows=self.piece_rows,
            concat=self.combine == "concat",
            weighted=weighted,
            dropout=self.piece_dropout,
            seed=self.seed,
            own_ids=isinstance(self.codes, Mapping),
            id_rows=self.own_rows,
        )

    def _items(self, table: Table) -> Items:
        return items_of(
            table,
            per_table(self.codes, table, "codes"),
            self.pieces,
            codebook_size=self.codebook_size,
            counts=None if self.counts is None else per_table(self.counts, table, "counts"),
            vocabulary=self.vocabulary,
            min_support=self.min_support,
            read_as_new=bool(self.piece_dropout),
        )

    def config(self, *, without: Sequence[str] = ()) -> dict[str, Any]:
        """Return the settings without codes and support, whose content the encoder saves with the rows."""
        unsaid = [] if self.hot else ["hot"]  # as it was before there was such a setting
        config = super().config(without=["codes", "pieces", "counts", "vocabulary", "neighbours", *unsaid, *without])
        return {**config, "pieces": repr(self.pieces)}

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return a ladder over the rows of the store; codes and id rows count, and `id_rows` stays as given."""
        least = cls(rows=2 if fixed.get("hot") else 1, **fixed)
        one = least.plan(tables)
        own = {plan.chunks[-1].store for plan in one.tables if least.own_rows is not None}
        encoders = {id(e.items): e for plan in one.tables if isinstance(e := plan.encoder, SemanticEncoder)}.values()
        owned = [
            (e.items.owners, int((per_table(least.counts, e.table, "counts") > 0).sum()))
            for e in encoders
            if e.items.owners is not None
        ]
        mixtures = {id(e.mixtures): e.mixtures for e in encoders if e.mixtures is not None}.values()

        def price(rows: int) -> Sizes:  # without the codes at each step of the search
            method = cls(rows=rows, **fixed)
            stores = {
                name: replace(store, rows=method.own_rows if name in own else method.piece_rows)
                for name, store in one.stores.items()
            }
            maps = one.sizes.maps + sum(rows_of_new.growth(method.piece_rows) for rows_of_new in mixtures)
            for owners, occurring in owned:
                number = max(1, min(method.own_rows or 0, occurring))
                maps += (number - owners.numel()) * owners.element_size()
            return Sizes(stores, maps)

        return Ladder(lambda rows: cls(rows=rows, **fixed), price, least.rows)

    def report(self, table: Table) -> SupportReport:
        """Count how many items of a table have content, and how far training items support their pieces."""
        with torch.device("cpu"):
            known = self._items(table)
        near = 0
        if self.neighbours is not None:
            near = neighbours_of_new(per_table(self.neighbours, table, "neighbours"), known, table).ids.numel()
        return SupportReport.of(known, near)
