"""LearnedWidths: the width of each table is learned in training, and the narrow rows are mapped to the common width."""

import dataclasses
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from embcomp.codecs.columns import Columns, Rule
from embcomp.codecs.narrow_rows import NarrowRows
from embcomp.codecs.sparse import Sparse
from embcomp.methods.around import settings_around
from embcomp.methods.base import (
    Combiner,
    Concat,
    Ladder,
    Method,
    Plan,
    Sizes,
    Store,
    Table,
    config_around,
    per_table,
)
from embcomp.methods.full import Full
from embcomp.methods.narrow import draw_map_, principal_directions
from embcomp.settings import Share, Width, Within, checked, shown


class SquareMap(Combiner):
    """A combiner that maps rows to vectors of the same width by a learned matrix.

    Args:
        width: the number of first columns that are not zero before a search.
        embedding_dim: the width.
    """

    def __init__(self, width: int, embedding_dim: int) -> None:
        super().__init__()
        self.width = width
        self.matrix = nn.Parameter(torch.empty(embedding_dim, embedding_dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the matrix so that vectors have the mean and the deviation of the first columns of the rows."""
        draw_map_(self.matrix[: self.width])
        nn.init.normal_(self.matrix[self.width :], std=self.width**-0.5)

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        return chunks[0] @ self.matrix.to(chunks[0].dtype)

    def dim(self, dims: Sequence[int]) -> int:
        return dims[0]

    @torch.no_grad()
    def start_(self, vectors: Tensor, counts: Tensor) -> tuple[Combiner, Tensor]:
        """Set the matrix to the directions of the table, those of the largest variance first."""
        self.matrix.copy_(principal_directions(vectors, counts)[1].t())
        return _FixedMap(self.matrix.detach().clone()), vectors


class _FixedMap(Combiner):
    """The rest of `SquareMap` while rows are fitted to trained vectors: its matrix as it is."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.kept = [matrix]

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        return chunks[0] @ self.kept[0].to(chunks[0].dtype)

    def dim(self, dims: Sequence[int]) -> int:
        return dims[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedWidths(Method):
    """Rows of a width that is learned for each table.

    In training rows have the full width; they are served with the first w_f columns and a matrix to the common width,
    as in `MixedDimensions`: e(id) = E_f[id, :w_f] M_f[:w_f]. `embcomp.Schedule` searches w_f in the first epochs, by
    one of two rules; then all tables choose together, as many columns as fit into the bytes of `width`, and the whole
    model begins again from its initial values. Without a schedule all tables keep `width` columns.

    - "mixture": the vector is the mean over candidate widths with the probabilities softmax((alpha_f + Gumbel noise) /
      temperature), the temperature falling from 1 by 0.00005 each step, with the penalty strength * the mean width /
      embedding_dim. The columns with the largest probabilities of a width above them are kept (AutoDim, Zhao et al.
      2021, arXiv 2006.14827, section 2). A schedule with held-out data trains alpha on it, as in the paper.
    - "evolution": each table is trained with a random candidate width in each step, and an evolutionary search then
      judges widths of all tables by the loss on held-out data, which the schedule needs (OptEmbed, Lyu et al. 2022,
      arXiv 2208.04482).

    With `of=LearnedMask(keep, rule="rows")` rows are searched by their norm at the same time, the other half of
    OptEmbed: the rows of largest norm are kept, then widths are chosen for these, and the others have no bytes.

    Unlike in the papers, all widths share the rows and the matrix (OptEmbed has none), there is no batch normalisation,
    and widths fit a budget.

    Args:
        width: the columns of each table, or a mapping from table names to them; after a search those of all tables
            together, in bytes.
        rule: the rule of the search.
        of: the method whose rows become narrow: one with the whole vector of an id in a row of its own.
        candidates: the widths of the search besides 1 and the embedding_dim; by default the powers of two, all widths
            for the rule "evolution".
        strength: the factor of the penalty of the rule "mixture"; 1e-3 by default.
        generations: the generations of the rule "evolution", each of 20 candidates; 30 by default.
        batches: the held-out batches that judge a candidate, for the rule "evolution"; 8 by default.
        search: the share of the epochs that search, rounded to whole epochs, at least one.
        seed: the seed of the noise and of the evolution.

    Raises:
        ValueError: a setting belongs to the other rule; a width is above the embedding_dim of a table, or rows of the
            method inside cannot become narrow (raised when a plan is made).

    Example:
        >>> import torch, embcomp
        >>> emb = embcomp.nn.CompressedEmbedding(1000, 16, embcomp.LearnedWidths(width=4))
        >>> embcomp.nbytes(emb) > 4 * 1000 * 16, embcomp.served_nbytes(emb) == 4 * 1000 * 4 + 4 * 16 * 16
        (True, True)
    """

    sized_in_steps: ClassVar[bool] = True
    sized_by: ClassVar[str] = "width"

    width: Width | Mapping[str, Width]
    rule: Rule = "mixture"
    of: Method = field(default_factory=Full)
    candidates: Sequence[int] | None = None
    strength: Annotated[float, Within(0.0)] | None = None
    generations: Annotated[int, Within(1)] | None = None
    batches: Annotated[int, Within(1)] | None = None
    search: Share = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, rule in {"strength": "mixture", "generations": "evolution", "batches": "evolution"}.items():
            if getattr(self, name) is not None and self.rule != rule:
                raise ValueError(f"LearnedWidths: {name} is for rule={rule!r}, got rule={self.rule!r}; leave it out")
        if self.candidates is not None:
            if isinstance(self.candidates, str) or not isinstance(self.candidates, Sequence):
                raise ValueError(f"LearnedWidths: candidates must be a list of widths, got {shown(self.candidates)}")
            for width in self.candidates:
                checked(width, Width, "LearnedWidths: candidates")

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        return self._narrowed(tables, self.of.sizes(tables, group), type(self.of))

    def _narrowed(self, tables: Sequence[Table], inside: Sizes, of: type[Method]) -> Sizes:
        stores = {table.name: self._store(table, inside.stores, of) for table in tables}
        return Sizes(stores, inside.maps, inside.learned + sum(table.embedding_dim**2 for table in tables))

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        inside, plans = self.of.plan(tables, group), []
        stores = {table.name: self._store(table, inside.stores, type(self.of)) for table in tables}
        for each in inside.tables:
            if len(each.chunks) > 1 or not isinstance(each.combiner, Concat):
                raise ValueError(f"table {each.table.name!r}: {_refused(type(self.of))}")
            each.encoder.config = config_around(self.config(), each, each.table)
            combiner = SquareMap(per_table(self.width, each.table, "width"), each.table.embedding_dim)
            plans.append(dataclasses.replace(each, combiner=combiner))
        return Plan(stores, plans)

    def _store(self, table: Table, inside: Mapping[str, Store], of: type[Method]) -> Store:
        table.ids_or_raise("LearnedWidths")
        dim, width, store = table.embedding_dim, per_table(self.width, table, "width"), inside.get(table.name)
        if store is None or store.dim != dim:
            raise ValueError(f"table {table.name!r}: {_refused(of)}")
        if max(width, *(self.candidates or (1,))) > dim:
            raise ValueError(
                f"table {table.name!r}: width={width} and candidates={self.candidates} must be at most its "
                f"embedding_dim {dim}; choose lower ones, or leave the table out"
            )
        every = range(1, dim + 1) if self.rule == "evolution" else (2**n for n in range(dim.bit_length()))
        mixture = self.rule == "mixture"
        columns = Columns(
            width,
            tuple(sorted({1, dim, *(every if self.candidates is None else self.candidates)})),
            self.rule,
            strength=(1e-3 if self.strength is None else self.strength) if mixture else 0.0,
            generations=0 if mixture else self.generations or 30,
            batches=0 if mixture else self.batches or 8,
            search=self.search,
            seed=self.seed,
        )
        if store.coding is None:
            return dataclasses.replace(store, coding=columns)
        if isinstance(store.coding, Sparse) and store.coding.rule == "rows":
            return dataclasses.replace(store, coding=NarrowRows(store.coding, columns))
        raise ValueError(f"table {table.name!r}: {_refused(of)}")

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return the ladder by the values of all tables together, or with given `width` that of the method inside.

        The widths are equal, and columns that still fit go to the tables with the most rows first, so that a search has
        almost the whole budget.

        Args:
            tables: the tables to compress together.
            nbytes: the budget in bytes.
            fixed: settings of LearnedWidths, settings of the method inside, and `of`: the class of that method, its
                name, or a configuration (by default `Full`); without `width` a configuration.
        """
        if "width" in fixed:
            inner, own, fixed = settings_around(cls, fixed)
            outer = cls(**own)
            inside = inner.ladder(tables, nbytes, **inner.checked_settings(fixed))
            return inside.around(
                lambda of: dataclasses.replace(outer, of=of), lambda sizes: outer._narrowed(tables, sizes, inner)
            )
        stores = cls(width=1, **fixed).sizes(tables).stores
        rows = {
            name: store.coding.mask.kept if isinstance(store.coding, NarrowRows) else store.rows
            for name, store in stores.items()
        }
        dims = {name: store.dim for name, store in stores.items()}
        order = sorted(rows, key=lambda name: -rows[name])

        def make(values: int) -> Self:
            level = bisect_right(range(max(dims.values()) + 1), values, key=lambda width: used(level_of(width))) - 1
            widths = level_of(level)
            left = values - used(widths)
            for name in order:
                more = min(left // rows[name], dims[name] - widths[name])
                widths[name], left = widths[name] + more, left - more * rows[name]
            return cls(width=widths, **fixed)

        def level_of(width: int) -> dict[str, int]:
            return {name: min(width, dim) for name, dim in dims.items()}

        def used(widths: Mapping[str, int]) -> int:
            return sum(rows[name] * width for name, width in widths.items())

        least, most = (used(level_of(width)) for width in (1, max(dims.values())))
        return Ladder(make, lambda values: make(values).sizes(tables), least, most)


def _refused(of: type[Method]) -> str:
    """Return why rows of a method cannot become narrow, and the remedy."""
    return (
        "LearnedWidths needs the whole vector of an id in a row of its own table, without another coding than that of "
        f"LearnedMask(rule='rows'); of={of.__name__} has others: leave it out, or take LearnedMask(keep, rule='rows')"
    )
