"""The large entries of a trained table, with zeros instead of the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from embcomp.methods.base import (
    Chunk,
    Concat,
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
)
from embcomp.methods.budget import SMALL, share_rows
from embcomp.ops.hashing import MAX_ROWS
from embcomp.ops.packing import MAX_BITS, pack, packed_words, unpack
from embcomp.settings import Width, Within

Kept = Annotated[float, Within(1e-9, 1.0)]
TOGETHER = 16  # ids for which the place of the first kept block is stored once
_STEPS = 4096  # sizes of the ladder: shares of 1 / 4096


class MaskEncoder(Encoder):
    """An encoder that reads the kept blocks of an id at their positions, and row 0 with weight 0 for the others.

    A bit per block marks kept blocks. These are stored in the order of ids and columns, so the row of a block is the
    number of kept blocks before it.
    """

    words: Tensor
    starts: Tensor

    def __init__(self, table: Table, config: Mapping[str, Any], kept: Tensor) -> None:
        super().__init__(table, config)
        self.blocks = kept.shape[1]
        padded = torch.nn.functional.pad(kept, (0, 0, 0, -len(kept) % TOGETHER))
        masks = (padded.long() << torch.arange(self.blocks, device="cpu")).sum(1)
        groups = padded.view(-1, TOGETHER * self.blocks).sum(1)
        self.register_buffer("words", pack(masks, self.blocks))
        self.register_buffer("starts", (groups.cumsum(0) - groups).int())

    def encode(self, ids: Tensor) -> list[Rows]:
        group = ids // TOGETHER
        masks = unpack(self.words, self.blocks, group, TOGETHER)
        position = (ids - group * TOGETHER).unsqueeze(1)
        before = torch.arange(TOGETHER, device=ids.device) < position
        first = self.starts[group].long() + (_ones(masks) * before).sum(1)
        bits = masks.gather(1, position) >> torch.arange(self.blocks, device=ids.device) & 1
        rows = (first.unsqueeze(1) + bits.cumsum(1) - bits) * bits
        parts = zip(rows.unbind(1), bits.unbind(1), strict=True)
        return [Rows(row.unsqueeze(1), bit.unsqueeze(1).float()) for row, bit in parts]


def _ones(masks: Tensor) -> Tensor:
    """Count the bits that are set in integers below 2^31."""
    masks = masks - (masks >> 1 & 0x55555555)
    masks = (masks & 0x33333333) + (masks >> 2 & 0x33333333)
    masks = masks + (masks >> 4) & 0x0F0F0F0F
    return (masks * 0x01010101 & 0xFFFFFFFF) >> 24


@dataclass(frozen=True, kw_only=True, eq=False)
class Pruned(Method):
    """The largest blocks of a trained table's vectors, and zeros elsewhere (Deng et al. 2021, arXiv 2002.06987).

    Vectors are cut into blocks of columns. The blocks of the largest mean square are kept, over the whole table
    (`by="block"`, magnitude pruning as in DeepLight), or all blocks of the rows of the largest mean square (`by="row"`,
    as the row masks of OptEmbed, Lyu et al. 2022, arXiv 2208.04482). With `counts`, squares are weighted by the
    frequency of ids, which loses the least over look-ups. `init="fit"` serves the kept blocks; `init="warm"` continues
    to train them under their mask; `init="fresh"` trains them from new values, as pruning papers do to evaluate a mask.

    Args:
        keep: the share of the blocks that are kept, over the whole table, or a mapping from table names to such shares.
        vectors: the trained table, float [num_embeddings, embedding_dim], or a mapping from table names to such tables.
        block: the number of columns that are kept or dropped together; 1 is the papers' choice, torchrec needs 4.
        by: "block" to compare blocks, "row" to compare whole rows.
        counts: the occurrences of each id, [num_embeddings], or a mapping from table names to such tensors.

    Raises:
        ValueError: a block does not divide the width of a table, there are more blocks than a mask holds (31), or
            vectors or counts have another shape or are not finite (raised when a plan is made).

    Example:
        >>> import torch, embcomp
        >>> trained = torch.tensor([[3.0, -2, 0.1, 0], [0, 0.2, 0.1, 0], [0.3, 0, 4, 1]])
        >>> model = torch.nn.ModuleDict({"item": torch.nn.Embedding.from_pretrained(trained)})
        >>> method = embcomp.Pruned(keep=0.34, vectors=trained, block=2)
        >>> report = embcomp.compress_(model, method, init="fit")
        >>> model["item"].materialize()
        tensor([[ 3., -2.,  0.,  0.],
                [ 0.,  0.,  0.,  0.],
                [ 0.,  0.,  4.,  1.]])
        >>> report.served_nbytes == 4 * 2 * 2 + 4 * 3 + 4  # two blocks of two, the packed masks, one start
        True
    """

    sized_in_steps: ClassVar[bool] = True
    learns_from_vectors: ClassVar[bool] = True
    sized_by: ClassVar[str] = "keep"

    keep: Kept | Mapping[str, Kept]
    vectors: Tensor | Mapping[str, Tensor] = field(repr=False)
    block: Width = 4
    by: Literal["block", "row"] = "block"
    counts: Tensor | Mapping[str, Tensor] | None = field(default=None, repr=False)

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        stores, maps = {}, 0
        for table in tables:
            ids, blocks = self._checked(table)
            stores[table.name] = Store(self._number(table, blocks), self.block)
            groups = -(-ids // TOGETHER)
            maps += 4 * (packed_words(groups * TOGETHER, blocks) + groups)
        return Sizes(stores, maps)

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        stores, plans = dict(self.sizes(tables).stores), []
        for table in tables:
            kept = self._kept(table)
            config = self.config(without=["vectors", "counts"])  # they live on in the masks
            encoder = MaskEncoder(table, config, kept)
            chunks = (Chunk(table.name, weighted=True),) * kept.shape[1]
            plans.append(TablePlan(table, encoder, chunks, Concat()))
        return Plan(stores, plans)

    def _checked(self, table: Table) -> tuple[int, int]:
        """Return the numbers of ids and of blocks of a vector. Raise ValueError if table or vectors do not fit."""
        ids = table.ids_or_raise("Pruned")
        blocks, rest = divmod(table.embedding_dim, self.block)
        if rest or not 1 <= blocks <= MAX_BITS:
            raise ValueError(
                f"table {table.name!r}: block={self.block} must divide embedding_dim {table.embedding_dim} into at "
                f"most {MAX_BITS} blocks; choose another block"
            )
        vectors = per_table(self.vectors, table, "vectors")
        if tuple(vectors.shape) != (ids, table.embedding_dim) or not vectors.is_floating_point():
            raise ValueError(
                f"table {table.name!r}: vectors must be floats [{ids}, {table.embedding_dim}], got {vectors.dtype} "
                f"{list(vectors.shape)}"
            )
        return ids, blocks

    def _number(self, table: Table, blocks: int) -> int:
        """Return the number of kept blocks of a table, at least those of one row or one block."""
        keep, ids = per_table(self.keep, table, "keep"), table.ids_or_raise("Pruned")
        unit = blocks if self.by == "row" else 1
        return min(max(1, int(keep * ids * blocks / unit)), ids * blocks // unit) * unit

    def _kept(self, table: Table) -> Tensor:
        """Return which blocks are kept, bool [ids, blocks] on CPU; the first of equal ones."""
        ids, blocks = self._checked(table)
        vectors = per_table(self.vectors, table, "vectors").detach().cpu().float()
        if not bool(vectors.isfinite().all()):
            raise ValueError(f"table {table.name!r}: vectors are NaN or infinite")
        size = vectors.view(ids, blocks, self.block).square().sum(2)
        if self.counts is not None:
            counts = check_counts(per_table(self.counts, table, "counts"), table).detach().cpu()
            size = size * counts.float().unsqueeze(1)
        number = self._number(table, blocks)
        if self.by == "row":
            size, number = size.sum(1), number // blocks
        order = torch.argsort(size.reshape(-1), descending=True, stable=True)[:number]
        kept = torch.zeros(size.numel(), dtype=torch.bool, device="cpu").index_fill_(0, order, True)
        return kept.unsqueeze(1).expand(ids, blocks) if self.by == "row" else kept.view(ids, blocks)

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return the ladder by `keep`, in steps of 1 / 4096, finer for large tables.

        Of several tables, small ones are kept whole, as they get a row for each id in hashed methods (`share_rows`).

        Args:
            tables: the tables to compress together.
            nbytes: the budget in bytes.
            fixed: settings to keep as given, among them `vectors`.
        """
        sizes = {table.name: table.ids_or_raise("Pruned") for table in tables}
        most = max(_STEPS, min(MAX_ROWS, 2 * sum(sizes.values()) + SMALL * len(sizes)))

        def make(size: int) -> Self:
            rows = share_rows(tables, size)
            if not isinstance(rows, Mapping):
                return cls(keep=size / most, **fixed)
            return cls(keep={name: min(1.0, rows[name] / ids) for name, ids in sizes.items()}, **fixed)

        return Ladder(make, lambda size: make(size).sizes(tables), most=most)
