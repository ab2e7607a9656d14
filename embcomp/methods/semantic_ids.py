"""SemanticIds: the rows of an item follow from its content, not from its id, so that new items start warm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

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
from embcomp.methods.semantic_encoder import SemanticEncoder, ranges_of
from embcomp.methods.semantic_neighbours import NeighbourEncoder
from embcomp.semantic_ids.neighbours import Neighbours
from embcomp.semantic_ids.pieces.base import Pieces, Span
from embcomp.semantic_ids.pieces.vocabulary import CodeCount, Vocabulary, checked_codes
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
        rows: the number of rows of the pieces.
        combine: "sum" to add up the rows of the pieces, "concat" to put them side by side (they then divide
            embedding_dim).
        id_rows: the rows of a second table, read by one more look-up: with `counts` the most frequent items own one
            each and the others read none; without `counts` every id reads its hash. It serves items that deserve
            memorisation.
        counts: how often each id occurs in training, [num_embeddings], or a mapping from table names to such tensors;
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

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        stores: dict[str, Store] = {}
        check_rows(self.rows, group)
        if self.id_rows is not None:
            check_rows(self.id_rows, f"{group}_id")
        widths = {table.embedding_dim for table in tables}
        plans: list[TablePlan] = []
        first: dict[Any, SemanticEncoder] = {}
        with torch.device("cpu"):  # maps are real even where rows are not
            for table in tables:
                home = group if len(widths) == 1 else f"{group}_{table.embedding_dim}"
                plans.append(self._table(table, home, stores))
                encoder = plans[-1].encoder
                assert isinstance(encoder, SemanticEncoder)
                given = (self.codes, self.counts, self.neighbours)
                held = [None if v is None else id(per_table(v, table, "codes")) for v in given]
                encoder.share_maps(first.setdefault((home, table.num_embeddings, *held), encoder))
        return Plan(stores, plans)

    def _table(self, table: Table, home: str, stores: dict[str, Store]) -> TablePlan:
        known = self._known(table)
        count = len(known.spans)
        if count > MOST_PIECES:
            raise ValueError(
                f"table {table.name!r}: {self.pieces} makes {count} pieces of an item, at most {MOST_PIECES} go; take "
                "longer pieces, or fewer levels"
            )
        parts = count + (self.id_rows is not None)
        concat = self.combine == "concat"
        if concat and table.embedding_dim % parts:
            raise ValueError(
                f"table {table.name!r}: embedding_dim {table.embedding_dim} is not a multiple of its {parts} parts; "
                "choose another, or combine='sum'"
            )
        dim, summands = (table.embedding_dim // parts, 1) if concat else (table.embedding_dim, parts)
        weighted = bool(self.piece_dropout) or table.num_embeddings is None or not bool(known.supported.all())
        make, lookups = SemanticEncoder, count
        if self.neighbours is not None:
            mixed = self.neighbour_rows or count
            make = partial(NeighbourEncoder, neighbours=self._neighbours(table, known), neighbour_rows=mixed)
            weighted, lookups = True, max(count, mixed)
        stores[home] = Store(self.rows, dim, summands=summands)
        chunks = [Chunk(home, 1, weighted)] * count if concat else [Chunk(home, lookups, weighted)]
        owners = None
        if self.id_rows is not None:
            own = f"{home}_id_{table.name}" if isinstance(self.codes, Mapping) else f"{home}_id"
            owners = None if known.counts is None else _owners(known.counts, self.id_rows, table)
            stores[own] = Store(self.id_rows, dim, summands=summands)
            chunks.append(Chunk(own, 1, weighted=owners is not None))
        encoder = make(
            table,
            {**self.config(), "items": known.columns.shape[0], "levels": known.columns.shape[1], "weighted": weighted},
            columns=known.columns,
            supported=known.supported,
            spans=known.spans,
            size=known.size,
            ranges=ranges_of(known.spans, known.size, self.rows, self.pieces.one_namespace),
            rows=self.rows,
            concat=concat,
            weighted=weighted,
            dropout=self.piece_dropout,
            as_new=known.as_new if self.piece_dropout else None,
            seed=self.seed,
            own_ids=isinstance(self.codes, Mapping),
            id_rows=self.id_rows,
            owners=owners,
        )
        return TablePlan(table, encoder, tuple(chunks), Concat() if concat or len(chunks) == 1 else Sum())

    def config(self, *, without: Sequence[str] = ()) -> dict[str, Any]:
        """Return the settings without codes and support, whose content the encoder saves with the rows."""
        config = super().config(without=["codes", "pieces", "counts", "vocabulary", "neighbours", *without])
        return {**config, "pieces": repr(self.pieces)}

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return a ladder over the rows of the store; codes and id rows count, and `id_rows` stays as given."""
        one = cls(rows=1, **fixed).plan(tables)
        shared = {name for name, store in cls(rows=2, **fixed).plan(tables).stores.items() if store.rows == 2}
        packed = {id(e.words): e for t in one.tables if isinstance(e := t.encoder, NeighbourEncoder)}.values()

        def price(rows: int) -> Sizes:  # without the codes at each step of the search
            stores = {
                name: replace(store, rows=rows) if name in shared else store for name, store in one.stores.items()
            }
            return Sizes(stores, one.sizes.maps + sum(encoder.growth(rows) for encoder in packed))

        return Ladder(lambda rows: cls(rows=rows, **fixed), price)

    def report(self, table: Table) -> "SupportReport":
        """Count how many items of a table have content, and how far training items support their pieces."""
        with torch.device("cpu"):
            known = self._known(table)
        has_content = known.has_content
        return SupportReport(
            items=known.columns.shape[0],
            without_content=int((~has_content).sum()),
            unseen=int((has_content & ~known.trained).sum()),
            fallback=int((~known.supported.any(1)).sum()),
            neighbours=0 if self.neighbours is None else self._neighbours(table, known).ids.numel(),
            supported=tuple(known.supported[has_content].double().mean(0).tolist()),
        )

    def _neighbours(self, table: Table, known: "_Known") -> Neighbours:
        """The neighbours of the items that do not occur in training."""
        found = per_table(self.neighbours, table, "neighbours")
        items = known.columns.shape[0]
        largest = max((int(part.max()) for part in (found.ids, found.nearest) if part.numel()), default=-1)
        if largest >= items or (found.ids < 0).any() or (found.nearest < -1).any():
            raise ValueError(
                f"table {table.name!r}: neighbours must be of its {items} items, but name item {largest}; make them "
                "from counts with an entry for each item"
            )
        new = ~known.trained[found.ids]
        return Neighbours(found.ids[new], found.nearest[new], found.weights[new])

    def _known(self, table: Table) -> "_Known":
        codes = checked_codes(per_table(self.codes, table, "codes"), self.codebook_size, f"table {table.name!r}: codes")
        if table.num_embeddings is not None and codes.shape[0] != table.num_embeddings:
            raise ValueError(
                f"table {table.name!r}: codes must have {table.num_embeddings} rows, one for each id, got "
                f"{codes.shape[0]}"
            )
        has_content = codes[:, 0] >= 0
        if not bool(has_content.any()):
            raise ValueError(f"table {table.name!r}: no item has codes")
        codebook_size = self.codebook_size or 1 << int(codes.max()).bit_length()
        counts = None if self.counts is None else per_table(self.counts, table, "counts")
        if counts is not None:
            counts = torch.as_tensor(counts, device="cpu")
            if counts.shape != codes.shape[:1] or not bool((counts >= 0).all()):
                raise ValueError(
                    f"table {table.name!r}: counts must be non-negative, of shape [{codes.shape[0]}], got "
                    f"{list(counts.shape)}"
                )
        vocabulary = self.vocabulary
        if vocabulary is None:
            vocabulary = Vocabulary.of(codes, self.pieces, codebook_size=codebook_size, counts=counts)
        elif (vocabulary.pieces, vocabulary.levels, vocabulary.codebook_size) != (
            self.pieces, codes.shape[1], codebook_size,
        ):  # fmt: skip
            raise ValueError(
                f"table {table.name!r}: the vocabulary is of {vocabulary.pieces} over {vocabulary.levels} x "
                f"{vocabulary.codebook_size} codes, but these are {self.pieces} over {codes.shape[1]} x {codebook_size}"
            )
        columns, spans = self.pieces.columns(codes, codebook_size), self.pieces.spans(codes.shape[1])
        size = self.pieces.size(codebook_size)
        present = torch.stack([(columns[:, list(span)] >= 0).all(1) for span in spans], 1)
        support = vocabulary.support_of(codes).masked_fill(~present, 0)
        trained = ((support > 0) | ~present).all(1) if counts is None else counts > 0
        backed_off = present & (support >= self._least(support))
        supported = torch.where(trained.unsqueeze(1), present & (support >= min(1, self.min_support)), backed_off)
        others = support - (trained.unsqueeze(1) & (support > 0)).long()  # that carry the piece too
        as_new = supported & (others >= self._least(others)) if self.piece_dropout else None
        return _Known(columns, supported, as_new, spans, size, counts, has_content, trained)

    def _least(self, support: Tensor) -> Tensor:
        """The support, int64 [N, 1], that an untrained item requires of a piece, from that of its pieces, [N, P].

        If no piece has `min_support`, the best one is read: unlike a hashed row, its row is trained on this content.
        """
        return support.amax(1, keepdim=True).clamp(min=min(1, self.min_support), max=self.min_support)


@dataclass(frozen=True)
class SupportReport:
    """The counts of `SemanticIds.report`.

    Attributes:
        items: the number of ids with an entry in the codes.
        without_content: the number of items with codes of -1.
        unseen: the number of items with content that do not occur in training; they read supported pieces only.
        fallback: the number of items without any supported piece, `without_content` included; they read hashed rows,
            unless they have neighbours.
        neighbours: the number of items that do not occur in training and read the rows of neighbours.
        supported: for each piece, coarse ones first, the share of the items with content whose piece is supported.
    """

    items: int
    without_content: int
    unseen: int
    fallback: int
    neighbours: int
    supported: tuple[float, ...]


class _Known(NamedTuple):
    """The facts about a table's items that a plan needs."""

    columns: Tensor
    supported: Tensor
    as_new: Tensor | None
    spans: Sequence[Span]
    size: int
    counts: Tensor | None
    has_content: Tensor
    trained: Tensor


def _owners(counts: Tensor, most: int, table: Table) -> Tensor:
    """The ids that own an id row, at least one, ascending; among equal counts the lower ids."""
    number = max(1, min(most, int((counts > 0).sum())))
    order = torch.argsort(counts, descending=True, stable=True)[:number].sort().values
    return order if table.num_embeddings is None else order.to(torch.int32)
