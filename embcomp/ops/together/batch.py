"""The ids of many parts of a batch, and the numbers of each part beside its ids."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from embcomp.ops.checks import INTEGERS, check_ids, is_recorded
from embcomp.ops.together import available

LARGEST = 2**63 - 1
Column = Sequence[int]


class Constants:
    """A cache of numbers of the host as tensors, which are sent to a device once."""

    def __init__(self) -> None:
        self._kept: dict[tuple[tuple[Column, ...], torch.device], Tensor] = {}

    def __call__(self, rows: tuple[Column, ...], like: Tensor) -> Tensor:
        """Return the numbers as int64 [rows, columns, 1] on the device of `like`."""
        if is_recorded(like):  # what is made of tracing stand-ins is not to be kept
            return _tensor(rows, like.device)
        numbers = self._kept.get((rows, like.device))
        if numbers is None:
            if len(self._kept) > 64:  # of maps that were swapped
                self._kept.clear()
            numbers = self._kept[rows, like.device] = _tensor(rows, like.device)
        return numbers

    def __reduce__(self) -> Any:
        return Constants, ()


def _tensor(rows: tuple[Column, ...], device: torch.device) -> Tensor:
    return torch.tensor([[[number] for number in row] for row in rows], dtype=torch.int64, device=device)


class Batch:
    """The ids that several parts encode, part after part.

    Args:
        values: the ids of the batch, integers [M], key by key.
        counts: the number of ids of each key, int64 [keys].
        order: the key that each part encodes; None if part i encodes key i, for all keys.
        ids_of: the ids of each part, views of `values`.
        limits: the number of ids of each part's table; None for an open id space.
        names: the names of the tables, for errors.
        constants: the cache that is kept between calls.

    Raises:
        ValueError: the ids are not integers.
    """

    def __init__(
        self,
        values: Tensor,
        counts: Tensor,
        order: tuple[int, ...] | None,
        ids_of: Sequence[Tensor],
        limits: Sequence[int | None],
        names: Sequence[str],
        constants: Constants | None = None,
    ) -> None:
        if values.dtype not in INTEGERS:
            check_ids(values, None, ", ".join(names))
        self.values, self.counts, self.order, self.ids_of = values, counts, order, ids_of
        self.last = [LARGEST if limit is None else limit - 1 for limit in limits]
        self.names = list(names)
        self.constants = Constants() if constants is None else constants
        self.in_one_launch = available.serves(values)
        self._number: Tensor | None = None
        self._ids: Tensor | None = None

    def repeated(self, times: int) -> "Batch":
        """Return a batch in which all parts occur several times, one after the other."""
        if times == 1:
            return self
        order = tuple(range(len(self.ids_of))) if self.order is None else self.order
        limits = [None if last == LARGEST else last + 1 for last in self.last]
        return Batch(
            self.values,
            self.counts,
            times * order,
            times * list(self.ids_of),
            times * limits,
            self.names,
            self.constants,
        )

    @property
    def sizes(self) -> list[int]:
        """The number of ids of each part."""
        return [ids.numel() for ids in self.ids_of]

    @property
    def part_counts(self) -> Tensor:
        """The number of ids of each part, int64 [parts]."""
        if self.order is None:
            return self.counts
        return self.counts.index_select(0, self.constants((self.order,), self.counts).view(-1))

    @property
    def number(self) -> Tensor:
        """The part of each id, int64 [N]."""
        if self._number is None:
            size = self.values.numel() if self.order is None else sum(self.sizes)
            self._number = torch.repeat_interleave(self.part_counts, output_size=size)
        return self._number

    @property
    def ids(self) -> Tensor:
        """The ids, int64 [N, 1], checked by an asynchronous assertion that names the tables."""
        if self._ids is None:
            ids = self.values if self.order is None else torch.cat(list(self.ids_of))
            self._ids = (ids if ids.dtype == torch.int64 else ids.long()).unsqueeze(-1)
            (last,) = self.each(self.last)
            self.check(((self._ids >= 0) & (self._ids <= last)).all())
        return self._ids

    def check(self, inside: Tensor) -> None:
        """Assert, without waiting for it, that this is not 0."""
        torch._assert_async(inside, f"tables {self.names}: an id is out of range")  # pyright: ignore

    def each(self, *columns: Column) -> tuple[Tensor, ...]:
        """Return for each column, which has a number for each part, the number of each id's part: int64 [N, 1]."""
        table = self.constants(tuple(map(tuple, columns)), self.number)
        return table.index_select(1, self.number).unbind(0)

    def joined(self, buffers: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """Put the buffers of the parts end to end, each once, and return the position at which each part's starts."""
        different = list({id(buffer): buffer for buffer in buffers}.values())
        start_of, start = {}, 0
        for buffer in different:
            start_of[id(buffer)] = start
            start += len(buffer)
        whole = different[0] if len(different) == 1 else torch.cat(different)
        return whole, [start_of[id(buffer)] for buffer in buffers]
