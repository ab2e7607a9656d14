"""BitCipher: an id adds up the rows of the bits that are set in its code; frequent ids have few."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp import configs
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
    check_rows,
    per_table,
)
from embcomp.methods.budget import share_rows
from embcomp.ops.hashing import MAX_ROWS
from embcomp.ops.packing import bits_for, pack, packed_words, unpack
from embcomp.ops.search import lower_bound
from embcomp.settings import RowCount


@configs.kind
@dataclass(frozen=True)
class Levels:
    """The ranks by the number of set bits: ranks starts[k - 1] .. starts[k] - 1 have codes with k set bits.

    Attributes:
        starts: the first rank of each level, and the number of ids at the end.
        typical: the mean number of set bits of an id, rounded.
    """

    starts: tuple[int, ...]
    typical: int

    @property
    def most(self) -> int:
        """The largest number of set bits."""
        return len(self.starts) - 1


def levels(ids: int, bits: int) -> Levels | None:
    """Return the levels of the first `ids` codes of `bits` bits, or None if there are fewer codes.

    Example:
        >>> levels(9, bits=4)  # four codes with one bit, five of the six with two
        Levels(starts=(0, 4, 9), typical=2)
    """
    starts, total = [0], 0
    while starts[-1] < ids:
        level = len(starts)
        if level > bits:
            return None
        end = min(ids, starts[-1] + math.comb(bits, level))
        total += level * (end - starts[-1])
        starts.append(end)
    return Levels(tuple(starts), max(1, round(total / ids)))


def set_bits(ranks: Tensor, bits: int, starts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the bits that are set in the codes of these ranks.

    Codes with fewer set bits come first, and those with equally many in the order of the numbers that they spell. The
    k set bits c_k > ... > c_1 of code r of a level are its number in the combinatorial number system, r = C(c_k, k) +
    ... + C(c_1, 1) (Knuth, The Art of Computer Programming 4A, section 7.2.1.3, theorem L).

    Args:
        ranks: the ranks, int64 [N].
        bits: the number of bits of a code.
        starts: the starts of the levels, from `levels`.

    Returns:
        The set bits, int64 [N, most], with 0 in free places; and the number of them, int64 [N].

    Example:
        >>> import torch
        >>> set_bits(torch.tensor([0, 3, 4, 5, 8]), 4, levels(9, 4).starts)
        (tensor([[0, 0],
                [3, 0],
                [0, 1],
                [0, 2],
                [1, 3]]), tensor([1, 1, 2, 2, 2]))
    """
    most = len(starts) - 1
    number, left = torch.ones_like(ranks), ranks
    for start in starts[1:-1]:
        beyond = ranks >= start
        number, left = number + beyond, torch.where(beyond, ranks - start, left)
    places = []
    for k, choices in zip(range(most, 1, -1), reversed(_binomials(bits, most, ranks.device)), strict=True):
        bit = (lower_bound(choices, (left + 1).contiguous()) - 1) * (number >= k)
        left = left - choices[bit] * (number >= k)
        places.append(bit)
    return torch.stack([left, *reversed(places)], 1), number


def _binomials(bits: int, most: int, device: torch.device) -> list[Tensor]:
    """The binomial coefficients C(c, k) for 0 <= c < bits, int64 [bits], for each k from 2 to `most`."""
    row, rows = torch.arange(bits, device=device), []
    for _ in range(2, most + 1):
        row = F.pad(row.cumsum(0)[:-1], (1, 0))  # C(c, k) = C(0, k - 1) + ... + C(c - 1, k - 1)
        rows.append(row)
    return rows


class CipherEncoder(Encoder):
    """An encoder that reads the row of each bit that is set in the code of an id's frequency rank.

    Attributes:
        words: the packed ranks of the ids; None if ids are ranks.
    """

    words: Tensor | None

    def __init__(self, table: Table, config: Mapping[str, Any], bits: int, ranks: Tensor | None) -> None:
        super().__init__(table, config)
        self.bits, self.ids = bits, table.ids_or_raise("BitCipher")
        self.levels = _levels(table, bits)
        self.register_buffer("words", None if ranks is None else pack(ranks, bits_for(self.ids)))

    def lookups_of(self, chunk: int) -> int:
        return self.levels.most

    def encode(self, ids: Tensor) -> list[Rows]:
        ranks = ids if self.words is None else unpack(self.words, bits_for(self.ids), ids)
        rows, number = set_bits(ranks, self.bits, self.levels.starts)
        read = torch.arange(self.levels.most, device=ids.device) < number.unsqueeze(1)
        scale = (self.levels.typical / number.float()).sqrt().unsqueeze(1)
        return [Rows(rows, read * scale)]


@dataclass(frozen=True, kw_only=True, eq=False)
class BitCipher(Method):
    """A row for each bit of a code, and codes with few set bits for frequent ids (Zhao & Williams 2023, 2311.11012).

    Ids are ranked by frequency. The first `rows` ranks have one bit set, and so a row of their own; the next ones have
    two, and so on. The vector of an id is the sum of the rows of its k set bits, times sqrt(s / k), where s is the mean
    k: all vectors start equally large. The ranks take ceil(log2 num_embeddings) bits for each id; without counts, ids
    are ranks, and there is no map.

    Args:
        rows: the bits of a code, each with a row, or a mapping from table names to such numbers.
        counts: the occurrences of each id in training, [num_embeddings], or a mapping from table names to such tensors.
            Ids with equal counts are ordered by id. By default, ids are sorted by frequency already.

    Raises:
        ValueError: there are fewer codes than ids, counts do not fit, or the id space is open (raised when a plan is
            made).

    Example:
        >>> import torch, embcomp
        >>> counts = torch.tensor([5, 0, 90, 1, 40, 1])
        >>> emb = embcomp.nn.CompressedEmbedding(6, 8, embcomp.BitCipher(rows=3, counts=counts))
        >>> (read,) = emb.encoder(torch.tensor([2, 3]))  # rank 0 is code 001, rank 3 code 011
        >>> read.rows, read.weights > 0
        (tensor([[0, 0],
                [0, 1]]), tensor([[ True, False],
                [ True,  True]]))
    """

    rows: RowCount | Mapping[str, RowCount]
    counts: Tensor | Mapping[str, Tensor] | None = field(default=None, repr=False)

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        stores, maps = {}, 0
        for table in tables:
            rows, ids = check_rows(per_table(self.rows, table, "rows"), table.name), table.ids_or_raise("BitCipher")
            stores[table.name] = Store(rows, table.embedding_dim, summands=_levels(table, rows).typical)
            maps += 0 if self.counts is None else 4 * packed_words(ids, bits_for(ids))
        return Sizes(stores, maps)

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        stores, plans = dict(self.sizes(tables).stores), []
        for table in tables:
            rows = stores[table.name].rows
            # The counts live on in the ranks, which are saved with the rows.
            config = {**self.config(without=["counts"]), "rows": rows, "ranked": self.counts is not None}
            encoder = CipherEncoder(table, config, rows, self._ranks(table))
            chunk = Chunk(table.name, encoder.levels.most, weighted=True)
            plans.append(TablePlan(table, encoder, (chunk,), Concat()))
        return Plan(stores, plans)

    def _ranks(self, table: Table) -> Tensor | None:
        """Return the frequency rank of each id, int64 [num_embeddings] on CPU; None if ids are ranks."""
        if self.counts is None:
            return None
        counts = check_counts(per_table(self.counts, table, "counts"), table).detach().cpu()
        return torch.argsort(torch.argsort(counts, descending=True, stable=True))

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return the ladder by the rows of all tables, which are at least those whose codes suffice.

        Args:
            tables: the tables to compress together.
            nbytes: the budget in bytes.
            fixed: settings to keep as given.
        """
        least = {table.name: table.ids_or_raise("BitCipher").bit_length() for table in tables}

        def make(size: int) -> Self:
            shares = share_rows(tables, size)
            rows = {
                name: max(few, shares[name] if isinstance(shares, Mapping) else shares) for name, few in least.items()
            }
            return cls(rows=rows, **fixed)

        return Ladder(make, lambda size: make(size).sizes(tables), most=MAX_ROWS * len(tables))


def _levels(table: Table, bits: int) -> Levels:
    """Return the levels of a table's codes. Raise ValueError if there are fewer codes than ids."""
    ids = table.ids_or_raise("BitCipher")
    found = levels(ids, bits)
    if found is None:
        raise ValueError(
            f"table {table.name!r}: rows={bits} gives {2**bits - 1} codes for {ids} ids; take at least "
            f"rows={ids.bit_length()}"
        )
    return found
