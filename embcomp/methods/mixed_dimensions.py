"""MixedDimensions: wide rows for popular ids, narrow rows for rare ones, and a learned map to the common width."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from embcomp.methods.base import (
    Chunk,
    Combiner,
    Encoder,
    Ladder,
    Method,
    Plan,
    Rows,
    Sizes,
    Store,
    Table,
    TablePlan,
    check_counts,
    per_table,
    side_store,
)
from embcomp.methods.narrow import draw_map_, principal_directions
from embcomp.ops.search import lower_bound
from embcomp.settings import Width, Within

_STEPS = 32  # sizes of the ladder between a width and its double


class Group(NamedTuple):
    """A group of ids of similar popularity: `ids` (None for all that no other group lists), their number and width."""

    ids: Tensor | None
    number: int
    width: int


class GroupEncoder(Encoder):
    """An encoder in which an id reads its row in the store of its group, and row 0 with weight 0 in the others.

    The last group has no list: an id that no list contains is numbered within the last group.
    """

    listed: Tensor
    group: Tensor
    row: Tensor

    def __init__(self, table: Table, config: Mapping[str, Any], groups: Sequence[Group]) -> None:
        super().__init__(table, config)
        self.groups = len(groups)
        with torch.device("cpu"):  # whatever the default device is
            none = torch.empty(0, dtype=torch.int64)
            lists = [group.ids for group in groups if group.ids is not None]
            listed = torch.cat([none, *lists])
            order = torch.argsort(listed)
            number = torch.cat([none, *(torch.full_like(group_ids, i) for i, group_ids in enumerate(lists))])
            row = torch.cat([none, *(torch.arange(len(group_ids)) for group_ids in lists)])
        kind = torch.int32 if table.ids_or_raise("MixedDimensions") <= 2**31 else torch.int64
        self.register_buffer("listed", listed[order].to(kind))
        self.register_buffer("group", number[order].to(torch.uint8))
        self.register_buffer("row", row[order].to(kind))

    def encode(self, ids: Tensor) -> list[Rows]:
        if self.groups == 1:
            return [Rows(ids.unsqueeze(-1))]
        narrow = ids.to(self.listed.dtype).contiguous()
        before = lower_bound(self.listed, narrow)
        position = before.clamp(max=self.listed.numel() - 1)
        listed = self.listed[position] == narrow
        group = torch.where(listed, self.group[position].long(), self.groups - 1)
        row = torch.where(listed, self.row[position].long(), ids - before)
        own = [(group == number).unsqueeze(-1) for number in range(self.groups)]
        return [Rows(torch.where(mine, row.unsqueeze(-1), 0), mine.float()) for mine in own]


class MappedSum(Combiner):
    """A combiner that maps each chunk [..., width] to the common width by a learned matrix, and adds them up.

    Chunks of the width of the result have no matrix.

    Args:
        widths: the width of each chunk.
        embedding_dim: the width of the result.
    """

    def __init__(self, widths: Sequence[int], embedding_dim: int) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        for number, width in enumerate(widths):
            if width < embedding_dim:
                self.register_parameter(f"matrix{number}", nn.Parameter(torch.empty(width, embedding_dim)))
        self.reset_parameters()

    @property
    def matrices(self) -> list[Tensor]:
        """The learned matrices, [width, embedding_dim] each."""
        return list(self.parameters())

    def reset_parameters(self) -> None:
        """Draw the matrices, so that vectors have the mean and the deviation of the narrow rows."""
        for matrix in self.matrices:
            draw_map_(matrix)

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        return _summed(chunks, self.matrices, self.embedding_dim)

    def dim(self, dims: Sequence[int]) -> int:
        return self.embedding_dim

    @torch.no_grad()
    def start_(self, vectors: Tensor, counts: Tensor) -> tuple[Combiner, Tensor] | None:
        """Set the matrices to the directions of largest variance of the whole table."""
        if not self.matrices:
            return None
        _, directions = principal_directions(vectors, counts)
        for matrix in self.matrices:
            matrix.copy_(directions[:, : len(matrix)].t())
        return _Fixed([matrix.detach() for matrix in self.matrices], self.embedding_dim), vectors


class _Fixed(Combiner):
    """The rest of `MappedSum` while rows are fitted to trained vectors: its matrices as they are."""

    def __init__(self, matrices: Sequence[Tensor], embedding_dim: int) -> None:
        super().__init__()
        self.kept, self.embedding_dim = list(matrices), embedding_dim

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        return _summed(chunks, self.kept, self.embedding_dim)

    def dim(self, dims: Sequence[int]) -> int:
        return self.embedding_dim


def _summed(chunks: Sequence[Tensor], matrices: Sequence[Tensor], embedding_dim: int) -> Tensor:
    """Add up chunks, the narrow ones mapped by the matrices in their order."""
    left = iter(matrices)
    mapped = [c if c.shape[-1] == embedding_dim else c @ next(left).to(c.dtype) for c in chunks]
    return mapped[0] if len(mapped) == 1 else torch.stack(mapped).sum(0)


@dataclass(frozen=True, kw_only=True, eq=False)
class MixedDimensions(Method):
    """Rows whose width grows with the popularity of their ids (Ginart et al. 2021, arXiv 1909.11810, algorithm 1).

    A group of ids of average probability p has rows of width base * p^alpha, rounded to a multiple of `multiple`, and a
    learned matrix that maps them to the `embedding_dim`; if that would not save bytes, rows have the full width and no
    matrix. Without `counts` a table is one group, of p = 1 / num_embeddings, so that large tables become narrow. With
    `counts` a table is cut into `groups` of equal total count, the most frequent ids first, and the ids of all groups
    but the last are listed (9 bytes for each).

    Args:
        base: the width of an id of probability 1; widths are proportional to it.
        alpha: the exponent of popularity; 0 gives all ids one width.
        groups: the number of frequency groups of a table; needs `counts` if above 1.
        counts: the occurrences of each id in training, [num_embeddings], or a mapping from table names to such tensors.
        multiple: the number that divides all widths, and the least width; torchrec needs 4.

    Raises:
        ValueError: there are groups without counts, `multiple` is above the width of a table, or the id space is open.

    Example:
        >>> import torch, embcomp
        >>> large, small = (embcomp.Table(name, n, 16) for name, n in (("user", 100_000), ("day", 7)))
        >>> sizes = embcomp.MixedDimensions(base=64, alpha=0.3).sizes([large, small])
        >>> {name: store.dim for name, store in sizes.stores.items()}  # 64 * 100_000^-.3 = 2.02
        {'user': 2, 'day': 16}
        >>> counts = torch.tensor([5, 0, 90, 1, 40, 1])
        >>> method = embcomp.MixedDimensions(base=16, alpha=1.0, groups=2, counts=counts)
        >>> emb = embcomp.nn.CompressedEmbedding(6, 8, method)
        >>> emb.encoder.listed, [store.weight.shape[1] for store in emb.stores]
        (tensor([2], dtype=torch.int32), [8, 1])
    """

    sized_in_steps: ClassVar[bool] = True
    sized_by: ClassVar[str] = "base"

    base: Annotated[float, Within(0.001, 2.0**24)]
    alpha: Annotated[float, Within(0.0, 10.0)] = 0.3
    groups: Annotated[int, Within(1, 16)] = 1
    counts: Tensor | Mapping[str, Tensor] | None = field(default=None, repr=False)
    multiple: Width = 1

    def __post_init__(self) -> None:
        if self.groups > 1 and self.counts is None:
            raise ValueError(f"MixedDimensions: groups={self.groups} needs the counts of the ids")

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        stores, maps, learned = {}, 0, 0
        for table in tables:
            groups = self._groups(table)
            for number, id_group in enumerate(groups):
                stores[self._store(table, number, tables)] = Store(id_group.number, id_group.width)
                learned += 0 if id_group.width == table.embedding_dim else id_group.width * table.embedding_dim
            kind = 4 if table.ids_or_raise("MixedDimensions") <= 2**31 else 8
            maps += (2 * kind + 1) * sum(id_group.number for id_group in groups[:-1])
        return Sizes(stores, maps, learned)

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        stores, plans = dict(self.sizes(tables).stores), []
        for table in tables:
            groups = self._groups(table)
            # The counts live on in the lists of ids, which are saved with the rows.
            config = {**self.config(without=["counts"]), "widths": [id_group.width for id_group in groups]}
            encoder = GroupEncoder(table, config, groups)
            names = [self._store(table, number, tables) for number in range(len(groups))]
            chunks = tuple(Chunk(name, weighted=len(groups) > 1) for name in names)
            combiner = MappedSum([id_group.width for id_group in groups], table.embedding_dim)
            plans.append(TablePlan(table, encoder, chunks, combiner))
        return Plan(stores, plans)

    @staticmethod
    def _store(table: Table, number: int, tables: Sequence[Table]) -> str:
        return table.name if number == 0 else side_store(table, f"group{number}", tables)

    def _groups(self, table: Table) -> list[Group]:
        """Return the groups of a table, the most frequent first; neighbouring groups of one width are merged."""
        ids = table.ids_or_raise("MixedDimensions")
        if self.multiple > table.embedding_dim:
            raise ValueError(
                f"table {table.name!r}: multiple={self.multiple} is above its embedding_dim {table.embedding_dim}; "
                "choose a lower one, or leave the table out"
            )
        counts = None
        if self.counts is not None and self.groups > 1:
            counts = check_counts(per_table(self.counts, table, "counts"), table).double().cpu()
        if counts is None or not bool((counts > 0).any()):
            return [Group(None, ids, self._width(1 / ids, ids, table))]
        order = torch.argsort(counts, descending=True, stable=True)
        passed = counts[order].cumsum(0)
        total = float(passed[-1])
        shares = torch.arange(1, self.groups, dtype=torch.float64, device="cpu") * (total / self.groups)
        ends = [*(torch.searchsorted(passed, shares) + 1).clamp(max=ids).tolist(), ids]
        parts: list[tuple[int, int, int]] = []  # first, end, width
        for first, end in zip([0, *ends], ends, strict=False):
            if first >= end:
                continue
            mass = float(passed[end - 1]) - (float(passed[first - 1]) if first else 0.0)
            width = self._width(mass / total / (end - first), end - first, table)
            if parts and parts[-1][2] == width:
                first = parts.pop()[0]
            parts.append((first, end, width))
        listed = [Group(order[first:end].sort().values, end - first, width) for first, end, width in parts]
        return [*listed[:-1], Group(None, listed[-1].number, listed[-1].width)]

    def _width(self, popularity: float, number: int, table: Table) -> int:
        """Return the width of `number` ids of probability p, base * p^alpha; full if narrow rows do not save bytes."""
        dim = table.embedding_dim
        wanted = self.base * popularity**self.alpha if popularity > 0 else 0.0
        width = min(max(1, round(wanted / self.multiple)) * self.multiple, dim)
        return width if number * width + width * dim < number * dim else dim

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return the ladder by `base`, in steps of 2^(1/32), for the given `alpha` or the default.

        Args:
            tables: the tables to compress together.
            nbytes: the budget in bytes.
            fixed: settings to keep as given.
        """
        alpha = fixed.get("alpha", cls.alpha)
        largest = max(t.embedding_dim * t.ids_or_raise("MixedDimensions") ** (2 * alpha + 1) for t in tables)
        most = max(1, min(24 * _STEPS, math.ceil(_STEPS * (math.log2(largest) + 1))))

        def make(size: int) -> Self:
            return cls(base=2 ** (size / _STEPS), **fixed)

        return Ladder(make, lambda size: make(size).sizes(tables), most=most)
