"""A table whose nearly equal blocks of trained rows are merged."""

import ctypes
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from embcomp.methods.base import (
    Chunk,
    Concat,
    Encoder,
    Method,
    Plan,
    Rows,
    Sizes,
    Store,
    Table,
    TablePlan,
    check_rows,
    per_table,
)
from embcomp.methods.together import Parts
from embcomp.ops.packing import bits_for, pack, packed_words, unpack
from embcomp.ops.together.maps import kept_rows
from embcomp.settings import RowCount, Within

_DRAWS = 4  # hashes of one bucket width
_NEXT = 3  # neighbours in a bucket that a block is compared with
_WIDER = 1.3
_WIDEST = 1e3  # deviations of a projection: everything lies in one bucket


class BlockEncoder(Encoder):
    """An encoder that reads the kept block that replaces the block of an id; the map is packed."""

    words: Tensor

    def __init__(self, table: Table, config: Mapping[str, Any], owners: Tensor, kept: int, block: int) -> None:
        super().__init__(table, config)
        self.block, self.bits = block, bits_for(kept)
        self.register_buffer("words", pack(owners, self.bits))

    def encode(self, ids: Tensor) -> list[Rows]:
        if self.block == 1:
            return [Rows(unpack(self.words, self.bits, ids).unsqueeze(-1))]
        own_block = ids // self.block
        return [
            Rows((unpack(self.words, self.bits, own_block) * self.block + ids - own_block * self.block).unsqueeze(-1))
        ]

    @classmethod
    def encode_together(cls, asked: Parts) -> Rows:
        """Return the rows of several encoders (`embcomp.methods.together`)."""
        bits, block = zip(*[(encoder.bits, encoder.block) for encoder in asked.encoder_of], strict=True)
        return Rows(kept_rows(asked.batch, asked.buffers("words"), bits, block))


@dataclass(frozen=True, kw_only=True, eq=False)
class Dedup(Method):
    """A method that merges nearly equal blocks of a trained table (Zhou et al. 2022, arXiv 2201.10442, section 4).

    The ids are cut into blocks of neighbours. Blocks whose projections fall into one bucket (locality-sensitive hashing
    for Euclidean distance, Datar et al. 2004) are candidates; the closest are merged first, until `rows` are left. The
    distance of two blocks is the largest difference among the `share` of their entries that differ least. `init="fit"`
    serves the mean of the merged vectors, `init="warm"` continues the training from it.

    Args:
        rows: the number of rows that are kept, or a mapping from table names to such numbers; rounded down to whole
            blocks.
        vectors: the trained table, float [num_embeddings, embedding_dim], or a mapping from table names to such tables.
        block: the number of neighbouring ids that are merged together.
        share: the share of the entries by which blocks are compared.
        tolerance: the largest distance at which blocks are merged; None merges as many as `rows` asks for.
        seed: the seed of the projections.

    Raises:
        ValueError: the vectors have another shape, or more rows remain at this tolerance than `rows` (raised when a
            plan is made).

    Example:
        >>> import torch, embcomp
        >>> trained = torch.randn(5, 8)[torch.arange(1000) % 5] + 0.001 * torch.randn(1000, 8)
        >>> model = torch.nn.ModuleDict({"item": torch.nn.Embedding.from_pretrained(trained)})
        >>> report = embcomp.compress_(model, embcomp.Dedup(rows=5, vectors=trained), init="fit")
        >>> report.served_nbytes == 4 * 5 * 8 + 4 * (3 * 1000 // 32 + 1 + 2)  # rows, and 3 bits for each id
        True
        >>> bool((model["item"].materialize() - trained).abs().max() < 0.02)
        True
    """

    sized_in_steps: ClassVar[bool] = True
    learns_from_vectors: ClassVar[bool] = True

    rows: RowCount | Mapping[str, RowCount]
    vectors: Tensor | Mapping[str, Tensor] = field(repr=False)
    block: Annotated[int, Within(1)] = 1
    share: Annotated[float, Within(0, 1)] = 0.7
    tolerance: Annotated[float, Within(0)] | None = None
    seed: int = 0

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        stores, maps = {}, 0
        for table in tables:
            kept, blocks = self._kept(table)
            stores[table.name] = Store(kept * self.block, table.embedding_dim)
            maps += 4 * packed_words(blocks, bits_for(kept))
        return Sizes(stores, maps)

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        stores, plans = dict(self.sizes(tables).stores), []
        for table in tables:
            kept, blocks = self._kept(table)
            vectors = per_table(self.vectors, table, "vectors").detach().cpu().float()
            short = blocks * self.block - len(vectors)
            cut = torch.nn.functional.pad(vectors, (0, 0, 0, short)).view(blocks, -1)
            owners, left = _merged_once(cut, kept, self.share, self.tolerance, self.seed)
            if left > kept:
                raise ValueError(
                    f"table {table.name!r}: tolerance={self.tolerance} leaves {left * self.block} rows, and rows="
                    f"{kept * self.block} are wanted; raise the tolerance, lower the share, or leave the tolerance out"
                )
            config = {**self.config(without=["vectors"]), "rows": kept * self.block}  # they live on in the map
            encoder = BlockEncoder(table, config, owners, kept, self.block)
            plans.append(TablePlan(table, encoder, (Chunk(table.name),), Concat()))
        return Plan(stores, plans)

    def _kept(self, table: Table) -> tuple[int, int]:
        """Return the numbers of kept blocks and of all. Raise ValueError if the vectors do not fit the table."""
        ids = table.ids_or_raise("Dedup")
        vectors = per_table(self.vectors, table, "vectors")
        if tuple(vectors.shape) != (ids, table.embedding_dim) or not vectors.is_floating_point():
            raise ValueError(
                f"table {table.name!r}: vectors must be floats [{ids}, {table.embedding_dim}], got {vectors.dtype} "
                f"{list(vectors.shape)}"
            )
        blocks = -(-ids // self.block)
        rows = check_rows(per_table(self.rows, table, "rows"), table.name)
        return min(blocks, max(1, rows // self.block)), blocks


_MERGED: dict[tuple[Any, ...], tuple[Tensor, int]] = {}
_KEPT = 1 << 23  # blocks of the results that are kept, the latest first: 64 MB


def _merged_once(blocks: Tensor, kept: int, share: float, tolerance: float | None, seed: int) -> tuple[Tensor, int]:
    """Return `merged`, and keep the last results, because one swap makes the plan of a table several times."""
    blocks = blocks.contiguous()
    digest = hashlib.sha256(ctypes.string_at(blocks.data_ptr(), blocks.nbytes)).digest()
    key = digest, tuple(blocks.shape), kept, share, tolerance, seed
    if key not in _MERGED:
        while sum(len(owners) for owners, _ in _MERGED.values()) + len(blocks) > _KEPT and _MERGED:
            _MERGED.pop(next(iter(_MERGED)), None)
        _MERGED[key] = merged(blocks, kept, share, tolerance, seed)
    return _MERGED[key]


def merged(blocks: Tensor, kept: int, share: float, tolerance: float | None, seed: int) -> tuple[Tensor, int]:
    """Merge the closest blocks until `kept` are left.

    Args:
        blocks: the blocks, float [B, D], finite.
        kept: the number of blocks to keep.
        share: the share of the entries that are compared.
        tolerance: the largest distance of a merge, or None.
        seed: the seed of the projections.

    Returns:
        The group of each block, int64 [B], and the number of groups that remain: `kept`, or more.

    Raises:
        ValueError: the blocks are not finite.
    """
    # On the CPU whatever the default device: the map is real where rows wait for their memory.
    if not bool(blocks.isfinite().all()):
        raise ValueError("Dedup: vectors are NaN or infinite")
    generator = torch.Generator().manual_seed(seed)
    compared = max(1, math.ceil(share * blocks.shape[1]))
    means, sizes = blocks.clone(), torch.ones(len(blocks), device="cpu")
    owner, alive = torch.arange(len(blocks), device="cpu"), torch.arange(len(blocks), device="cpu")
    spread = float((blocks - blocks.mean(0)).square().sum(1).mean().sqrt()) or 1.0
    width, draws, idle = 1e-3 * spread, 0, 0
    while len(alive) > kept and idle < _DRAWS:
        firsts, seconds = _closest(means[alive], width, compared, tolerance, generator)
        draws = 0 if len(firsts) > len(alive) // 8 else draws + 1  # many similar blocks are merged before buckets widen
        if width >= _WIDEST * spread:  # all lie in one bucket: blocks not merged now are too far apart
            idle = 0 if len(firsts) else idle + 1
        elif draws == _DRAWS:
            width, draws = width * _WIDER, 0
        firsts, seconds = alive[firsts[: len(alive) - kept]], alive[seconds[: len(alive) - kept]]
        whole = sizes[firsts] + sizes[seconds]
        of_second = (sizes[seconds] / whole).unsqueeze(1)
        means[firsts] += of_second * (means[seconds] - means[firsts])
        sizes[firsts] = whole
        moved = torch.arange(len(blocks), device="cpu").index_copy_(0, seconds, firsts)
        owner = moved[owner]
        gone = torch.zeros(len(blocks), dtype=torch.bool, device="cpu").index_fill_(0, seconds, True)
        alive = alive[~gone[alive]]
    number = torch.zeros(len(blocks), dtype=torch.int64, device="cpu")
    number.index_copy_(0, alive, torch.arange(len(alive), device="cpu"))
    return number[owner], len(alive)


def _closest(
    means: Tensor, width: float, compared: int, tolerance: float | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return pairs of blocks of one bucket, closest first, with no block in two pairs."""
    directions = torch.randn(means.shape[1], 2, generator=generator, device="cpu")
    bucket = (means @ directions / width + torch.rand(2, generator=generator, device="cpu")).floor().long()
    # Neighbours in a bucket lie near each other.
    along = means @ torch.randn(means.shape[1], generator=generator, device="cpu")
    order = along.argsort(stable=True)
    for column in (1, 0):
        order = order[bucket[order, column].argsort(stable=True)]
    steps = range(1, min(_NEXT, len(order) - 1) + 1)
    left, right = torch.cat([order[:-step] for step in steps]), torch.cat([order[step:] for step in steps])
    same = (bucket[left] == bucket[right]).all(1)
    left, right = left[same], right[same]
    apart = (means[left] - means[right]).abs().kthvalue(compared, dim=1).values
    # The width bounds what is merged yet, so that close blocks are merged before others.
    close = apart <= (width if tolerance is None else min(width, tolerance))
    left, right, apart = left[close], right[close], apart[close]
    order = torch.randperm(len(apart), generator=generator, device="cpu")  # equal distances in an order of their own
    order = order[apart[order].argsort(stable=True)]
    left, right, number = left[order], right[order], torch.arange(len(order), device="cpu")
    first = torch.full((len(means),), len(order), device="cpu").scatter_reduce_(
        0, torch.cat([left, right]), number.repeat(2), "amin"
    )
    alone = (first[left] == number) & (first[right] == number)
    return left[alone], right[alone]
