"""Encoding of the chunks of several encoders in one pass over all of their ids.

Encoding one encoder after the other launches a dozen small kernels for each on a GPU. A class that defines
`encode_together` gets the ids of all of its features as one batch (`embcomp.ops.together`), and takes as many
operations as a single encoder. `hand_together` is the same for numbers that are handed to the combiner.
"""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from embcomp.methods.encoder import Rows
from embcomp.ops.together.batch import Batch, Constants


class Part(NamedTuple):
    """One chunk of one encoder."""

    encoder: Any
    chunk: int


class Parts:
    """The input of `encode_together`.

    Attributes:
        parts: the parts, all of one class and alike (`alike`).
        encoder_of: the encoder of each part.
        chunks: the chunk of each part.
        encoders: the different encoders.
        batch: the ids that each part encodes, for the forms of `embcomp.ops.together`.
    """

    def __init__(self, parts: Sequence[Part], batch: Batch) -> None:
        self.parts, self.batch = parts, batch
        self.encoder_of: list[Any] = [part.encoder for part in parts]
        self.chunks = [part.chunk for part in parts]
        self.encoders: list[Any] = list({id(encoder): encoder for encoder in self.encoder_of}.values())

    @property
    def ids(self) -> Tensor:
        """The checked ids, int64 [N, 1]."""
        return self.batch.ids

    @property
    def number(self) -> Tensor:
        """The index in `parts` of the part that encodes each id, int64 [N]."""
        return self.batch.number

    def each(self, *columns: Sequence[int]) -> tuple[Tensor, ...]:
        """Return for each column, which has a number for each part, the number of each id's part: int64 [N, 1]."""
        return self.batch.each(*columns)

    def constant(self, numbers: Sequence[int]) -> Tensor:
        """Return numbers as an int64 tensor on the device of the ids."""
        return self.batch.constants((tuple(numbers),), self.number).view(-1)

    def buffers(self, name: str) -> list[Tensor]:
        """Return a buffer of each part's encoder."""
        return [getattr(encoder, name) for encoder in self.encoder_of]

    def joined(self, buffer: str) -> Tensor:
        """Return a buffer of all encoders, end to end."""
        return self.batch.joined(self.buffers(buffer))[0]

    def starts(self, buffer: str) -> list[int]:
        """Return the position in `joined` at which the buffer of each part's encoder starts."""
        return self.batch.joined(self.buffers(buffer))[1]


def alike(part: Part) -> Hashable | None:
    """Return a key of parts that can be encoded together; None for an encoder that must be encoded alone.

    A subclass may encode in another way than its base, so only a class that itself defines `encode_together` counts.
    """
    kind = type(part.encoder)
    own = part.encoder.together_with(part.chunk) if "encode_together" in vars(kind) else None
    return None if own is None else (kind, own)


def encode_together(parts: Sequence[Part], batch: Batch) -> Rows:
    """Return the rows that each id reads in its part, int64 [N, lookups], and their weights if the method has them.

    Args:
        parts: the parts, all of one kind (`alike`).
        batch: the ids that each part encodes.

    Raises:
        RuntimeError: an id is out of range, raised as an asynchronous assertion.
    """
    encoder: Any = type(parts[0].encoder)
    return encoder.encode_together(Parts(parts, batch))


def hand_alike(encoder: Any) -> Hashable | None:
    """Return a key of encoders that hand numbers over together, as `alike` does; None for one that does it alone."""
    own = encoder.hands_with() if "hand_together" in vars(type(encoder)) else None
    return None if own is None else (type(encoder), own)


def hand_together(parts: Sequence[Part], batch: Batch) -> list[Tensor]:
    """Return the numbers that the encoder of each part hands to the combiner for each id, [N, ...] each.

    Args:
        parts: the parts, whose encoders are of one kind (`hand_alike`); their chunks do not matter.
        batch: the ids that each part encodes.

    Raises:
        RuntimeError: an id is out of range, raised as an asynchronous assertion.
    """
    encoder: Any = type(parts[0].encoder)
    return encoder.hand_together(Parts(parts, batch))


def batch_of(
    parts: Sequence[Part],
    values: Tensor,
    counts: Tensor,
    order: tuple[int, ...] | None,
    ids_of: Sequence[Tensor],
    constants: Constants,
) -> Batch:
    """Return the batch of parts; the arguments are those of `Batch`.

    Raises:
        ValueError: the ids are not integers.
    """
    tables = [part.encoder.table for part in parts]
    limits = [table.num_embeddings for table in tables]
    names = list(dict.fromkeys(table.name for table in tables))
    return Batch(values, counts, order, ids_of, limits, names, constants)
