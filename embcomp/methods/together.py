"""Encoding of the chunks of several encoders in one pass over all of their ids.

Encoding one encoder after the other launches a dozen small kernels for each on a GPU. A class that defines
`encode_together` gets the ids of all of its features in one tensor, with the numbers of each encoder gathered beside
them, and takes as many operations as a single encoder.
"""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from embcomp.methods.encoder import Rows
from embcomp.ops.checks import INTEGERS, check_ids, is_recorded

_LARGEST = 2**63 - 1


class Part(NamedTuple):
    """One chunk of one encoder."""

    encoder: Any
    chunk: int


class Constants:
    """A cache of numbers of the host as tensors, which are sent to a device once."""

    def __init__(self) -> None:
        self._kept: dict[tuple[tuple[Sequence[int], ...], torch.device], Tensor] = {}

    def __call__(self, rows: tuple[Sequence[int], ...], like: Tensor) -> Tensor:
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


def _tensor(rows: tuple[Sequence[int], ...], device: torch.device) -> Tensor:
    return torch.tensor([[[number] for number in row] for row in rows], dtype=torch.int64, device=device)


class Parts:
    """The input of `encode_together`.

    Attributes:
        parts: the parts, all of one class and alike (`alike`).
        ids: the checked ids, int64 [N, 1].
        number: the index in `parts` of the part that encodes each id, int64 [N].
    """

    def __init__(self, parts: Sequence[Part], ids: Tensor, number: Tensor, constants: Constants) -> None:
        self.parts, self.number, self._constants = parts, number, constants
        self.encoders: list[Any] = list({id(part.encoder): part.encoder for part in parts}.values())
        self.ids = self._checked(ids)

    def each(self, *columns: Sequence[int]) -> tuple[Tensor, ...]:
        """Return for each column, which has a number for each part, the number of each id's part: int64 [N, 1]."""
        table = self._constants(tuple(map(tuple, columns)), self.number)
        return table.index_select(1, self.number).unbind(0)

    def constant(self, numbers: Sequence[int]) -> Tensor:
        """Return numbers as an int64 tensor on the device of the ids."""
        return self._constants((tuple(numbers),), self.number).view(-1)

    def joined(self, buffer: str) -> Tensor:
        """Return a buffer of all encoders, end to end."""
        held = [getattr(encoder, buffer) for encoder in self.encoders]
        return held[0] if len(held) == 1 else torch.cat(held)

    def starts(self, buffer: str) -> list[int]:
        """Return the position in `joined` at which the buffer of each part's encoder starts."""
        start_of, start = {}, 0
        for encoder in self.encoders:
            start_of[id(encoder)] = start
            start += len(getattr(encoder, buffer))
        return [start_of[id(part.encoder)] for part in self.parts]

    def _checked(self, ids: Tensor) -> Tensor:
        """Check the ids of all tables at once, as `check_ids` does for one."""
        names = list(dict.fromkeys(encoder.table.name for encoder in self.encoders))
        if ids.dtype not in INTEGERS:
            check_ids(ids, None, ", ".join(names))
        ids = (ids if ids.dtype == torch.int64 else ids.long()).unsqueeze(-1)
        limits = [part.encoder.table.num_embeddings for part in self.parts]
        (last,) = self.each([_LARGEST if limit is None else limit - 1 for limit in limits])
        inside = ((ids >= 0) & (ids <= last)).all()
        torch._assert_async(inside, f"tables {names}: an id is out of range")  # pyright: ignore
        return ids


def alike(part: Part) -> Hashable | None:
    """Return a key of parts that can be encoded together; None for an encoder that must be encoded alone.

    A subclass may encode in another way than its base, so only a class that itself defines `encode_together` counts.
    """
    kind = type(part.encoder)
    return (kind, part.encoder.lookups_of(part.chunk)) if "encode_together" in vars(kind) else None


def encode_together(parts: Sequence[Part], ids: Tensor, number: Tensor, constants: Constants) -> Rows:
    """Return the rows that each id reads in its part, int64 [N, lookups], and their weights if the method has them.

    Args:
        parts: the parts, all of one kind (`alike`).
        ids: the ids, integers [N].
        number: the index of each id's part, int64 [N].
        constants: the cache that is kept between calls.

    Raises:
        ValueError: the ids are not integers.
        RuntimeError: an id is out of range, raised as an asynchronous assertion.
    """
    encoder: Any = type(parts[0].encoder)
    return encoder.encode_together(Parts(parts, ids, number, constants))
