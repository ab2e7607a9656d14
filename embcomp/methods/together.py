"""Chunks of several encoders encoded in one pass over all of their ids, in as many operations as one of them takes.

An encoder that is encoded one after the other launches a dozen small kernels on a GPU. A class that defines
`encode_together` gets the ids of all of its features in one tensor, with what each encoder knows gathered beside them.
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
    """Numbers that the host knows, as tensors: sent to a device once, however often they are asked for."""

    def __init__(self) -> None:
        self._kept: dict[tuple[tuple[Sequence[int], ...], torch.device], Tensor] = {}

    def __call__(self, rows: tuple[Sequence[int], ...], like: Tensor) -> Tensor:
        """int64 [rows, columns, 1] where `like` is."""
        if is_recorded(like):  # what is made of tracing stand-ins is not to be kept
            return _tensor(rows, like.device)
        found = self._kept.get((rows, like.device))
        if found is None:
            if len(self._kept) > 64:  # of maps that were swapped
                self._kept.clear()
            found = self._kept[rows, like.device] = _tensor(rows, like.device)
        return found

    def __reduce__(self) -> Any:
        return Constants, ()


def _tensor(rows: tuple[Sequence[int], ...], device: torch.device) -> Tensor:
    return torch.tensor([[[number] for number in row] for row in rows], dtype=torch.int64, device=device)


class Parts:
    """What `encode_together` is asked for.

    Attributes:
        parts: of one class, and alike (`alike`).
        ids: int64 [N, 1], checked.
        number: int64 [N], the place in `parts` of what each id is encoded by.
    """

    def __init__(self, parts: Sequence[Part], ids: Tensor, number: Tensor, constants: Constants) -> None:
        self.parts, self.number, self._constants = parts, number, constants
        self.encoders: list[Any] = list({id(part.encoder): part.encoder for part in parts}.values())
        self.ids = self._checked(ids)

    def each(self, *columns: Sequence[int]) -> tuple[Tensor, ...]:
        """Of each column, which has a number for each part, that of each id: int64 [N, 1]."""
        table = self._constants(tuple(map(tuple, columns)), self.number)
        return table.index_select(1, self.number).unbind(0)

    def constant(self, numbers: Sequence[int]) -> Tensor:
        """Numbers as a tensor, int64, where the ids are."""
        return self._constants((tuple(numbers),), self.number).view(-1)

    def joined(self, buffer: str) -> Tensor:
        """A buffer of all encoders, end to end."""
        held = [getattr(encoder, buffer) for encoder in self.encoders]
        return held[0] if len(held) == 1 else torch.cat(held)

    def starts(self, buffer: str) -> list[int]:
        """Where the buffer of each part's encoder starts in `joined`."""
        found, start = {}, 0
        for encoder in self.encoders:
            found[id(encoder)] = start
            start += len(getattr(encoder, buffer))
        return [found[id(part.encoder)] for part in self.parts]

    def _checked(self, ids: Tensor) -> Tensor:
        """As `check_ids`, for all tables at once."""
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
    """What parts share that are encoded together; None for an encoder that is encoded alone.

    A subclass of one that can may encode otherwise, so each class has an `encode_together` of its own, or none.
    """
    kind = type(part.encoder)
    return (kind, part.encoder.lookups_of(part.chunk)) if "encode_together" in vars(kind) else None


def encode_together(parts: Sequence[Part], ids: Tensor, number: Tensor, constants: Constants) -> Rows:
    """The rows that each id reads in its part, int64 [N, lookups], and their weights, where the method has them.

    Args:
        parts: of one kind (`alike`).
        ids: integers [N].
        number: int64 [N], the part of each id.
        constants: what is kept between calls.

    Raises:
        ValueError: ids that are no integers.
        RuntimeError: an id out of range, as an asynchronous assertion.
    """
    encoder: Any = type(parts[0].encoder)
    return encoder.encode_together(Parts(parts, ids, number, constants))
