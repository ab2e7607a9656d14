"""ROBE: all vectors are blocks of one flat array, which may begin at any place of it."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor

from embcomp.methods.base import Chunk, Combiner, Ladder, Method, Plan, Rows, Sizes, Store, Table, TablePlan
from embcomp.methods.hashing import HashEncoder
from embcomp.methods.together import Parts
from embcomp.ops.hashing import MAX_ROWS, hash_rows
from embcomp.ops.together.blocks import blocks
from embcomp.ops.together.hashing import hashed
from embcomp.settings import MAX_READS, Width, Within

_WIDE = 4  # rows are multiples of so many floats, which FBGEMM can read


class Blocks(Combiner):
    """A combiner that cuts each block out of the two rows that may hold it, and multiplies it by its sign.

    Chunks 2 b and 2 b + 1 are the rows of block b; the encoder hands over its first column in them, [N, blocks], and
    the signs, [N, blocks].

    Attributes:
        centre: the mean of the replaced table, float32 [1], around which the signs turn; it is not trained.
    """

    linear = False
    linear_in_rows = True
    draws = True
    beside = ("centre",)
    centre: Tensor

    def __init__(self, blocks: int, block: int) -> None:
        super().__init__()
        self.blocks, self.block = blocks, block
        self.register_buffer("centre", torch.zeros(1, device=_real_device()))

    def reset_parameters(self) -> None:
        self.centre.fill_(self.like.mean)

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        return self.combine([*chunks, self.centre])

    def combine(self, chunks: Sequence[Tensor]) -> Tensor:
        *rows, starts, signs, centre = chunks
        pairs = torch.stack(rows, dim=-2)
        pairs = pairs.reshape(*pairs.shape[:-2], self.blocks, 2 * pairs.shape[-1])
        columns = starts.unsqueeze(-1) + torch.arange(self.block, device=starts.device)
        read = pairs.gather(-1, columns) * signs.unsqueeze(-1).to(pairs.dtype)
        return read.flatten(-2) + centre.to(read)  # the device too: only shapes may be asked for

    def dim(self, dims: Sequence[int]) -> int:
        return self.blocks * self.block


def _real_device() -> str | None:
    """Return a device other than meta: the buffer follows from the configuration, so no state dict fills it."""
    return "cpu" if torch.get_default_device().type == "meta" else None


class BlockEncoder(HashEncoder):
    """An encoder that hashes each block of an id to a place in the array: the row that holds it, and the next row."""

    hands: ClassVar[bool] = True

    def __init__(
        self, table: Table, config: Mapping[str, Any], seed: int, rows: int, width: int, blocks: int, signs: bool
    ) -> None:
        ranges = [rows * width, 2] if signs else [rows * width]
        super().__init__(table, config, seed, ranges, [blocks] * len(ranges))
        self.rows, self.width = rows, width

    def encode(self, ids: Tensor) -> list[Rows]:
        first = self._places(ids) // self.width
        after = (first + 1) % self.rows  # the array wraps
        pairs = zip(first.unbind(1), after.unbind(1), strict=True)
        return [Rows(rows.unsqueeze(-1)) for pair in pairs for rows in pair]

    def handed(self, ids: Tensor) -> list[Tensor]:
        starts = self._places(ids) % self.width
        if len(self.ranges) == 1:
            return [starts, torch.ones_like(starts, dtype=torch.float32)]
        return [starts, (2 * hash_rows(ids, self.keys[self.lookups[0] :], 2) - 1).float()]

    @classmethod
    def hand_together(cls, asked: Parts) -> list[Tensor]:
        """Return what several encoders hand over (`embcomp.methods.together`)."""
        encoders, (blocks, *others) = asked.encoder_of, asked.encoder_of[0].lookups
        hashes = 1 + len(others)  # places, and signs if there are any
        first = [number * blocks for number in range(hashes) for _ in encoders]
        sizes = [encoder.ranges[number] for number in range(hashes) for encoder in encoders]
        places, *signs = hashed(
            asked.batch.repeated(hashes), hashes * asked.buffers("keys"), first, sizes, blocks
        ).chunk(hashes)
        (width,) = asked.each([encoder.width for encoder in encoders])
        starts = places % width
        return [starts, (2 * signs[0] - 1).float() if signs else torch.ones_like(starts, dtype=torch.float32)]

    def hands_with(self) -> Hashable:
        return self.lookups

    def lookups_of(self, chunk: int) -> int:
        return 1

    @classmethod
    def encode_together(cls, asked: Parts) -> Rows:
        """Return the rows of several encoders (`embcomp.methods.together`)."""
        encoders = asked.encoder_of
        rows = blocks(
            asked.batch,
            keys=asked.buffers("keys"),
            first=[chunk // 2 for chunk in asked.chunks],
            size=[encoder.ranges[0] for encoder in encoders],
            width=[encoder.width for encoder in encoders],
            after=[chunk % 2 for chunk in asked.chunks],
        )
        return Rows(rows)

    def _places(self, ids: Tensor) -> Tensor:
        """Return the places of the blocks, int64 [N, blocks], below the size of the array."""
        return hash_rows(ids, self.keys[: self.lookups[0]], self.ranges[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class ROBE(Method):
    """Blocks of a vector at hashed places of one array, each with a hashed sign (Desai et al. 2022, arXiv 2108.02191).

    Coordinates b Z to (b + 1) Z - 1 of e(id) are g_b(id) A[h_b(id)], ..., g_b(id) A[h_b(id) + Z - 1], with Z = `block`
    and the index modulo `size` (random offset block embedding, section 4). All tables of an instance read one array, at
    any place of it, so blocks overlap. The array is stored as a table, so that it is trained, sharded and rounded like
    any other; a block is cut out of two consecutive rows.

    Args:
        size: the number of floats of the array; a multiple of the row, which is `block` rounded up to a multiple of 4.
        block: the number of coordinates that are read together; it must divide the widths. With larger blocks there are
            fewer look-ups.
        signs: False to read blocks without signs. Ids that meet in the array then share what all of them have in
            common, as the bias of popular items, instead of cancelling it.
        seed: the seed of the places and signs.

    Raises:
        ValueError: the block does not divide a width, or the size is not a multiple of the row.

    Example:
        >>> import torch, embcomp
        >>> emb = embcomp.nn.CompressedEmbedding(100_000, 16, embcomp.ROBE(size=4000, block=8))
        >>> emb(torch.tensor([3, 99_999])).shape
        torch.Size([2, 16])
        >>> embcomp.nbytes(emb) == 4 * 4000 + 2 * 2 * 8 + 4  # the array, keys, the centre
        True
    """

    shares_store: ClassVar[bool] = True
    sized_by: ClassVar[str] = "size"

    size: Annotated[int, Within(_WIDE, MAX_ROWS, text="in [4, 2^31)")]
    block: Width = 8
    signs: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        row = _row(self.block)
        if self.size % row:
            raise ValueError(
                f"ROBE: size={self.size} is not a multiple of {row}, the row of block={self.block}; take "
                f"{max(1, self.size // row) * row}"
            )

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        row = _row(self.block)
        keys = sum((1 + self.signs) * self._blocks(table) for table in tables) * HashEncoder.key_nbytes
        return Sizes({group: Store(self.size // row, row, init="centred")}, keys + 4 * len(tables))

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        (store,) = self.sizes(tables, group).stores.values()
        plans = []
        for table in tables:
            blocks = self._blocks(table)
            encoder = BlockEncoder(table, self.config(), self.seed, store.rows, store.dim, blocks, self.signs)
            plans.append(TablePlan(table, encoder, (Chunk(group),) * (2 * blocks), Blocks(blocks, self.block)))
        return Plan({group: store}, plans)

    def _blocks(self, table: Table) -> int:
        """Return the number of blocks of a vector."""
        blocks, rest = divmod(table.embedding_dim, self.block)
        if rest:
            raise ValueError(
                f"table {table.name!r}: block={self.block} does not divide embedding_dim {table.embedding_dim}; choose "
                "a divisor"
            )
        if 2 * blocks > MAX_READS:
            raise ValueError(f"table {table.name!r}: {blocks} blocks are too many look-ups; choose a larger block")
        return blocks

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return the sizes to search, as `Method.ladder` does, by the rows of the array."""
        row = _row(fixed.get("block", cls.block))

        def make(rows: int) -> Self:
            return cls(size=rows * row, **fixed)

        return Ladder(make, lambda rows: make(rows).sizes(tables), most=MAX_ROWS // row)


def _row(block: int) -> int:
    """Return the floats per row of the table that holds the array; a block touches at most two rows."""
    return -(-block // _WIDE) * _WIDE
