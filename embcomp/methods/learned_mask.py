"""LearnedMask: a table whose few entries that are kept are learned while it is trained, served as sparse rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from embcomp.codecs.sparse import Rule, Sparse
from embcomp.methods.base import (
    Chunk,
    Concat,
    Ladder,
    Method,
    Plan,
    Sizes,
    Store,
    Table,
    TablePlan,
    check_counts,
    per_table,
)
from embcomp.methods.budget import SMALL, share_rows
from embcomp.methods.full import IdentityEncoder
from embcomp.ops.hashing import MAX_ROWS
from embcomp.settings import Share, Width, Within

_STEPS = 4096  # sizes of the ladder: shares of 1 / 4096
Kept = Annotated[float, Within(1e-9, 1.0)]
_STRENGTH: dict[Rule, float] = {"gates": 1e-5, "rows": 1e-5}


@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedMask(Method):
    """A full table in training that learns which of its entries to keep, and is served as sparse rows.

    `embcomp.Schedule` searches the mask in the first epochs, by one of four rules, keeps the blocks of columns with the
    largest scores over the whole table, and trains them under the mask. Without a schedule a mask that is spread evenly
    over the table is trained from the start; `init="warm"` and `init="fit"` keep the largest trained entries.

    - "threshold": soft thresholds, v = sign(w) relu(|w| - sigmoid(s)), with s learned (PEP, Liu et al. 2021, arXiv
      2101.07577, equations 4 to 6). The score is |w| - sigmoid(s), and the search ends early if v has no more
      entries than are kept.
    - "magnitude": the smallest |w| become zero, a share (1 - keep) (1 - damping^(n / 100)) of them after n steps
      (DeepLight, Deng et al. 2021, arXiv 2002.06987, algorithm 1).
    - "gates": v = g w with gates in [0, 1] for each frequency group and column, and an L1 penalty (AutoSrh, Kong et al.
      2022, arXiv 2208.06087). The score is g, then |w|.
    - "rows": v = w if |w|_1 > t, else 0, with t learned and the penalty exp(-t) (OptEmbed, Lyu et al. 2022, arXiv
      2208.04482, section 3.2). Whole rows are kept, by |w|_1, and the search ends early as for thresholds.

    Except for "magnitude" the whole model begins again from its initial values after the search, as in the papers.

    Args:
        keep: the share of the blocks that are kept, over the whole table, or a mapping from table names to such shares.
        rule: the rule of the search.
        block: the number of columns that are kept or dropped together; the rule "rows" always takes whole rows.
        per: the entries that share a threshold, for the rule "threshold".
        start: the initial s, for the rule "threshold".
        counts: the occurrences of each id in training, [num_embeddings], or a mapping from table names to such tensors,
            which the rule "gates" needs.
        groups: the number of frequency groups of as many ids each, for the rule "gates".
        strength: the factor of the penalty of the rules "gates" and "rows"; 1e-5 by default.
        damping: the factor by which entries still to be pruned decrease in 100 steps, for the rule "magnitude"; by
            default 1 % of them are left at the end of the search.
        decay: the factor of half the square of the rows in the loss while the mask is searched, like weight decay in
            the papers. Without either, Adam moves rare rows as far as frequent ones, and |w| does not tell them apart.
        search: the share of the epochs that search, rounded to whole epochs, at least one.

    Raises:
        ValueError: a setting belongs to another rule, "gates" lacks counts, or a block does not divide the width of a
            table (raised when a plan is made).

    Example:
        >>> import torch, embcomp
        >>> model = torch.nn.ModuleDict({"item": torch.nn.Embedding(1000, 8)})
        >>> report = embcomp.compress_(model, embcomp.LearnedMask(keep=0.1, rule="threshold"))
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        >>> schedule = embcomp.Schedule(model, epochs=2, steps=50, optimizer=optimizer)
        >>> for epoch in range(2):
        ...     for step in range(50):
        ...         (model["item"](torch.arange(100)) - 1.0).square().sum().backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        ...         schedule.step()
        ...     print(schedule.stage, schedule.epoch_ended())
        search True
        train False
        >>> int((model["item"].materialize() != 0).sum()) == 0.1 * 1000 * 8
        True
        >>> embcomp.served_nbytes(model) == 4 * 800 + 32 * (32 + 4)  # values, and windows of 256 bits with a count
        True
    """

    sized_in_steps: ClassVar[bool] = True
    sized_by: ClassVar[str] = "keep"

    keep: Kept | Mapping[str, Kept]
    rule: Rule = "magnitude"
    block: Width = 1
    per: Literal["table", "row", "dimension"] | None = None
    start: float | None = None
    counts: Tensor | Mapping[str, Tensor] | None = field(default=None, repr=False)
    groups: Annotated[int, Within(1, 255)] | None = None
    strength: Annotated[float, Within(0.0)] | None = None
    damping: Annotated[float, Within(0.0, below=1)] | None = None
    decay: Annotated[float, Within(0.0)] = 0.0
    search: Share = 0.5

    def __post_init__(self) -> None:
        settings = {"per": ("threshold",), "start": ("threshold",), "groups": ("gates",), "damping": ("magnitude",)}
        for name, rules in {**settings, "strength": ("gates", "rows")}.items():
            if getattr(self, name) is not None and self.rule not in rules:
                one = " or ".join(map(repr, rules))
                raise ValueError(f"LearnedMask: {name} is for rule={one}, got rule={self.rule!r}; leave it out")
        if self.rule == "gates" and self.counts is None:
            raise ValueError("LearnedMask: rule='gates' needs the counts of the ids")
        if self.rule == "rows" and self.block != 1:
            raise ValueError(f"LearnedMask: rule='rows' takes whole rows, got block={self.block}; leave it out")

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        return Sizes({table.name: self._store(table) for table in tables})

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        config = self.config(without=["counts"])
        plans = [TablePlan(t, IdentityEncoder(t, config), (Chunk(t.name),), Concat()) for t in tables]
        return Plan(dict(self.sizes(tables).stores), plans)

    def _store(self, table: Table) -> Store:
        ids, dim = table.ids_or_raise("LearnedMask"), table.embedding_dim
        block = dim if self.rule == "rows" else self.block
        if dim % block:
            raise ValueError(
                f"table {table.name!r}: block={block} must divide its embedding_dim {dim}; choose another block"
            )
        coding = Sparse(
            kept=max(1, int(per_table(self.keep, table, "keep") * (ids * dim // block))),
            block=block,
            rule=self.rule,
            per=self.per or "table",
            start=-11.0 if self.start is None else self.start,
            groups=(self.groups or 6) if self.rule == "gates" else 0,
            group=self._group_of_rows(table) if self.rule == "gates" else None,
            strength=_STRENGTH.get(self.rule, 0.0) if self.strength is None else self.strength,
            damping=self.damping,
            decay=self.decay,
            search=self.search,
        )
        return Store(ids, dim, coding=coding)

    def _group_of_rows(self, table: Table) -> Tensor:
        """Return the frequency group of each id, uint8 [num_embeddings]: 0 for the most frequent ones."""
        counts = check_counts(per_table(self.counts, table, "counts"), table).detach().cpu()
        order = torch.argsort(counts.double(), descending=True, stable=True)
        number = torch.arange(len(order), device="cpu") * (self.groups or 6) // len(order)
        return torch.empty(len(order), dtype=torch.uint8, device="cpu").index_copy_(0, order, number.to(torch.uint8))

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return the ladder by `keep`, in steps of 1 / 4096, finer for large tables.

        Of several tables, small ones are kept whole, as they get a row for each id in hashed methods (`share_rows`).

        Args:
            tables: the tables to compress together.
            nbytes: the budget in bytes.
            fixed: settings to keep as given.
        """
        sizes = {table.name: table.ids_or_raise("LearnedMask") for table in tables}
        most = max(_STEPS, min(MAX_ROWS, 2 * sum(sizes.values()) + SMALL * len(sizes)))

        def make(size: int) -> Self:
            rows = share_rows(tables, size)
            if not isinstance(rows, Mapping):
                return cls(keep=size / most, **fixed)
            return cls(keep={name: min(1.0, rows[name] / ids) for name, ids in sizes.items()}, **fixed)

        return Ladder(make, lambda size: make(size).sizes(tables), most=most)
