"""Rows of a method that are moved within a joint store, the most read rows first."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from embcomp.methods.base import Encoder, Rows, Table


class Place(NamedTuple):
    """The position of a store's rows in another store.

    Attributes:
        first: the first row of those that are not hot.
        hot: the mask of hot rows, bool [rows]; None if no row is hot.
        first_hot: the first of the hot rows.
    """

    first: int
    hot: Tensor | None = None
    first_hot: int = 0


class MovedRows(Encoder):
    """An encoder that moves the rows of another: hot rows by their rank among the hot ones, the others likewise.

    The mask of hot rows takes a bit for each row, and the counts of earlier hot rows half a bit.

    Args:
        inner: the encoder of the method inside.
        config: the configuration.
        table: its table.
        places: the position of each store's rows.
        stores: the store of each chunk.
    """

    def __init__(
        self,
        inner: Encoder,
        config: Mapping[str, Any],
        table: Table,
        places: Mapping[str, Place],
        stores: Sequence[str],
    ) -> None:
        super().__init__(table, config)
        self.inner = inner
        names = list(dict.fromkeys(stores))
        self.numbers = [names.index(store) for store in stores]
        self.firsts = [(places[name].first, places[name].first_hot) for name in names]
        for number, name in enumerate(names):
            hot = places[name].hot
            words, before = (None, None) if hot is None else _ranks(hot)
            self.register_buffer(f"hot_{number}", words)
            self.register_buffer(f"before_{number}", before)

    @property
    def hands(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True if the encoder inside hands numbers to the combiner."""
        return self.inner.hands

    def handed(self, ids: Tensor) -> list[Tensor]:
        return self.inner.handed(ids)

    def encode(self, ids: Tensor) -> list[Rows]:
        read = self.inner.encode(ids)
        return [Rows(self._moved(rows.rows, n), rows.weights) for rows, n in zip(read, self.numbers, strict=True)]

    def _moved(self, rows: Tensor, number: int) -> Tensor:
        (first, first_hot), words = self.firsts[number], getattr(self, f"hot_{number}")
        if words is None:
            return rows + first if first else rows
        word, bit = words[rows >> 6], rows & 63
        lower = word & ((1 << bit) - 1)
        rank = getattr(self, f"before_{number}")[rows >> 6] + _ones(lower)
        is_hot = (word >> bit & 1).bool()
        return torch.where(is_hot, first_hot + rank, first + rows - rank)


def ranks_nbytes(rows: int) -> int:
    """The bytes of the mask of hot rows, with its counts.

    Example:
        >>> ranks_nbytes(6400)
        1200
    """
    return -(-rows // 64) * 12


def _ranks(hot: Tensor) -> tuple[Tensor, Tensor]:
    """The bits of the rows, int64 [rows / 64], and the number of hot rows before each word, int32."""
    words = torch.nn.functional.pad(hot.long(), (0, -len(hot) % 64)).view(-1, 64)
    counts = words.sum(1)
    shifts = torch.arange(64, device=hot.device)
    return (words << shifts).sum(1), (counts.cumsum(0) - counts).int()


def _ones(words: Tensor) -> Tensor:
    """Count the bits that are set in each non-negative int64, by adding up groups of two, four and eight bits."""
    words = words - (words >> 1 & 0x5555555555555555)
    words = (words & 0x3333333333333333) + (words >> 2 & 0x3333333333333333)
    words = words + (words >> 4) & 0x0F0F0F0F0F0F0F0F
    return words * 0x0101010101010101 >> 56
