"""The codec of sparse rows: a mask of the kept entries, which is searched in training or given."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from embcomp import configs
from embcomp.codecs.base import Codec, Coded, Coding, weighed
from embcomp.codecs.mask_rules import RULES, home_of
from embcomp.constants import Maps
from embcomp.ops.bitmaps import WINDOW, bitmap_windows, bits_at, ones_before, pack_bitmap, rank_at

VALUE_BYTES = 4  # kept values are served as float32
START_BYTES = 4
_BLOCK = 1 << 22  # entries at a time

Rule = Literal["threshold", "magnitude", "gates", "rows"]


@dataclass(frozen=True, eq=False)
class Sparse(Coding):
    """A mask over the blocks of a table: kept blocks are served, the others are zero.

    Attributes:
        kept: the number of kept blocks of the table.
        block: the number of columns of a block.
        rule: the rule by which a schedule searches the mask.
        per: the entries that share a threshold, for the rule "threshold".
        start: the initial thresholds before the sigmoid, for the rule "threshold".
        groups: the number of frequency groups, for the rule "gates".
        group: the frequency group of each row, uint8 [rows], for the rule "gates".
        strength: the factor of the penalty, for the rules "gates" and "rows".
        damping: the factor of the remaining entries in 100 steps, for the rule "magnitude".
        decay: the factor of half the square of the rows in the loss, while the mask is searched.
        search: the share of the epochs that search.
    """

    rounds: ClassVar[bool] = False

    kept: int
    block: int = 1
    rule: Rule = "magnitude"
    per: Literal["table", "row", "dimension"] = "table"
    start: float = 0.0
    groups: int = 0
    group: Tensor | None = field(default=None, repr=False)
    strength: float = 0.0
    damping: float | None = None
    decay: float = 0.0
    search: float = 0.5

    def __eq__(self, other: object) -> bool:
        return type(other) is Sparse and configs.same(self, other)

    def __hash__(self) -> int:
        return hash((self.kept, self.block, self.rule, self.groups))

    def nbytes(self, rows: int, dim: int, float_bytes: int) -> int:
        group = rows if self.rule == "gates" else 0
        learned = RULES[self.rule].learned(rows, dim, self)
        return bitmap_windows(rows * dim // self.block) * WINDOW // 8 + 1 + group + learned * float_bytes

    def served_nbytes(self, rows: int, dim: int) -> int:
        return self._served(rows * dim // self.block, self.kept)

    def _served(self, blocks: int, kept: int) -> int:
        return self.map_nbytes(blocks) + kept * self.block * VALUE_BYTES

    def map_nbytes(self, blocks: int) -> int:
        """Return the bytes that say which of so many blocks are kept, in the served form."""
        return bitmap_windows(blocks) * (WINDOW // 8 + START_BYTES)

    def decode(
        self,
        packed: Tensor,
        dim: int,
        constants: Mapping[str, Tensor],
        rows: Tensor,
        offsets: Tensor | None = None,
        weights: Tensor | None = None,
        mode: str = "sum",
    ) -> Tensor:
        values, blocks = constants["values"], dim // self.block
        first = rows * blocks
        bits = bits_at(packed, first.unsqueeze(1) + torch.arange(blocks, device=rows.device))
        rank = rank_at(packed, constants["starts"], first).unsqueeze(1) + bits.long().cumsum(1) - bits.long()
        vectors = values[rank.clamp(max=values.shape[0] - 1)].masked_fill(~bits.unsqueeze(-1), 0.0).flatten(1)
        return weighed(vectors, offsets, weights, mode)

    def module(self, rows: int, dim: int, device: Any = None, dtype: torch.dtype | None = None) -> "SparseCodec":
        return SparseCodec(self, rows, dim, device, dtype)


class SparseCodec(Codec, Maps):
    """A codec that masks the entries of a table, or searches the mask by a rule.

    A new codec keeps blocks that are spread evenly over the table, and does not search. `embcomp.Schedule` lets it
    search, during which all entries are stored and served as the rule makes them, and then choose.

    Attributes:
        mask: the kept blocks, a bitmap over the blocks of row 0, row 1, ...
        searching: whether the rule is in force, uint8 [].
        rule: the rule of the search.
    """

    mask: Tensor
    searching: Tensor

    def __init__(
        self, coding: Sparse, rows: int, dim: int, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(coding, rows, dim)
        self.sparse = coding
        self.blocks = rows * dim // coding.block
        self.rule = RULES[coding.rule](rows, dim, coding, device, dtype)
        home = home_of(device)
        self.register_buffer("mask", _spread(self.blocks, coding.kept).to(home))
        self.register_buffer("searching", torch.zeros((), dtype=torch.uint8, device=home))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.rule.reset_parameters()
        self.searching.zero_()
        self.mask.copy_(_spread(self.blocks, self.sparse.kept))

    @property
    def served_nbytes(self) -> int:
        """The bytes of the served form; of all entries while the mask is searched."""
        return self.sparse._served(self.blocks, self.blocks if bool(self.searching) else self.sparse.kept)

    def forward(self, stored: Tensor, rows: Tensor, measured: Tensor | None) -> Tensor:
        if stored.is_meta:  # only shapes are asked for
            return sum((parameter.sum() for parameter in self.rule.parameters()), stored * 1)
        each = self.dim // self.sparse.block
        places = rows.unsqueeze(-1) * each + torch.arange(each, device=rows.device)
        kept = bits_at(self.mask, places)
        if self.sparse.block > 1:
            kept = kept.repeat_interleave(self.sparse.block, -1)
        found = self.rule(stored, rows).to(stored.dtype)
        return torch.where(self.searching.bool(), found, stored.masked_fill(~kept, 0.0))

    @torch.no_grad()
    def begin(self) -> None:
        """Start the search: all entries are kept, and the rule is in force."""
        self.rule.reset_parameters()
        self.searching.fill_(1)
        self.mask.copy_(pack_bitmap(torch.ones(self.blocks, dtype=torch.bool, device=self.mask.device)))

    @torch.no_grad()
    def choose(self, stored: Tensor) -> None:
        """End the search: keep the blocks of the largest scores, the first of equal ones."""
        scores = self.rule.scores(stored.float()).unflatten(1, (-1, self.sparse.block)).sum(2)
        order = torch.argsort(scores.reshape(-1), descending=True, stable=True)[: self.sparse.kept]
        kept = torch.zeros(self.blocks, dtype=torch.bool, device=stored.device).index_fill_(0, order, True)
        self.mask.copy_(pack_bitmap(kept))
        self.searching.zero_()

    @torch.no_grad()
    def density(self, stored: Tensor) -> float:
        """Return the share of blocks that the rule serves with values other than zero."""
        rows = torch.arange(self.rows, device=stored.device)
        vectors = self.rule(stored, rows).unflatten(1, (-1, self.sparse.block))
        return float((vectors != 0).any(2).float().mean())

    @torch.no_grad()
    def fit_(self, stored: Tensor, values: Tensor | None = None) -> None:
        self.rule.reset_parameters()
        self.choose(stored)

    @torch.no_grad()
    def code(self, stored: Tensor) -> Coded:
        kept = bits_at(self.mask, torch.arange(self.blocks, device=stored.device))
        values = self.decode_table(stored).reshape(self.blocks, self.sparse.block)[kept].float()
        return Coded(self.mask.clone(), 8, {"values": values, "starts": ones_before(self.mask)})

    def extra_repr(self) -> str:
        return f"kept={self.sparse.kept}, block={self.sparse.block}, rule={self.sparse.rule!r}"


def _spread(blocks: int, kept: int) -> Tensor:
    """Return the bitmap of so many kept blocks, spread evenly: block i is kept if i p mod blocks < kept."""
    with torch.device("cpu"):
        step = max(1, min(int(0.618 * blocks), 1 << 28))
        while math.gcd(step, blocks) > 1:
            step += 1
        parts = [
            torch.arange(start, min(start + _BLOCK, blocks)) * step % blocks < kept
            for start in range(0, blocks, _BLOCK)
        ]
        return pack_bitmap(torch.cat(parts))
