"""LearnedWidths: the width of each table is learned in training, and the narrow rows are mapped to the common width."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from embcomp.codecs.columns import Columns, Rule
from embcomp.methods.base import Chunk, Combiner, Ladder, Method, Plan, Sizes, Store, Table, TablePlan, per_table
from embcomp.methods.full import IdentityEncoder
from embcomp.methods.narrow import draw_map_, principal_directions
from embcomp.settings import Share, Width, Within


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
        self.matrix.copy_(principal_directions(vectors, counts).t())
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
      arXiv 2208.04482). Rows by their norm, the other half of that method, are `LearnedMask(rule="rows")`.

    Unlike in the papers, all widths share the rows and the matrix (OptEmbed has none), there is no batch normalisation,
    and widths fit a budget.

    Args:
        width: the columns of each table, or a mapping from table names to them; after a search those of all tables
            together, in bytes.
        rule: the rule of the search.
        candidates: the widths of the search besides 1 and the embedding_dim; by default the powers of two, all widths
            for the rule "evolution".
        strength: the factor of the penalty of the rule "mixture"; 1e-3 by default.
        generations: the generations of the rule "evolution", each of 20 candidates; 30 by default.
        batches: the held-out batches that judge a candidate, for the rule "evolution"; 8 by default.
        search: the share of the epochs that search, rounded to whole epochs, at least one.
        seed: the seed of the noise and of the evolution.

    Raises:
        ValueError: a setting belongs to the other rule, or a width is above the embedding_dim of a table (raised when
            a plan is made).

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
        if self.candidates is not None and not all(width >= 1 for width in self.candidates):
            raise ValueError(f"LearnedWidths: candidates must be at least 1, got {self.candidates}")

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        stores = {table.name: self._store(table) for table in tables}
        return Sizes(stores, learned=sum(table.embedding_dim**2 for table in tables))

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        plans = []
        for table in tables:
            combiner = SquareMap(per_table(self.width, table, "width"), table.embedding_dim)
            plans.append(TablePlan(table, IdentityEncoder(table, self.config()), (Chunk(table.name),), combiner))
        return Plan({table.name: self._store(table) for table in tables}, plans)

    def _store(self, table: Table) -> Store:
        ids, dim, width = (
            table.ids_or_raise("LearnedWidths"),
            table.embedding_dim,
            per_table(self.width, table, "width"),
        )
        if max(width, *(self.candidates or (1,))) > dim:
            raise ValueError(
                f"table {table.name!r}: width={width} and candidates={self.candidates} must be at most its "
                f"embedding_dim {dim}; choose lower ones, or leave the table out"
            )
        every = range(1, dim + 1) if self.rule == "evolution" else (2**n for n in range(dim.bit_length()))
        mixture = self.rule == "mixture"
        coding = Columns(
            width,
            tuple(sorted({1, dim, *(every if self.candidates is None else self.candidates)})),
            self.rule,
            strength=(1e-3 if self.strength is None else self.strength) if mixture else 0.0,
            generations=0 if mixture else self.generations or 30,
            batches=0 if mixture else self.batches or 8,
            search=self.search,
            seed=self.seed,
        )
        return Store(ids, dim, coding=coding)

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return the ladder by the values of all tables together.

        The widths are equal, and columns that still fit go to the tables with the most rows first, so that a search has
        almost the whole budget.

        Args:
            tables: the tables to compress together.
            nbytes: the budget in bytes.
            fixed: settings to keep as given.
        """
        rows = {table.name: table.ids_or_raise("LearnedWidths") for table in tables}
        dims = {table.name: table.embedding_dim for table in tables}
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
