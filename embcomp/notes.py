"""The notes of a report about tables for which compression did harm."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from embcomp.methods.base import Rows, TablePlan

FEW = 64
"""The number of ids up to which each id probably matters by itself: weekdays, genders, device types."""


class CompressionWarning(UserWarning):
    """The warning that a table grew, or that ids of a small table can no longer be told apart.

    Example:
        >>> import warnings, torch, embcomp
        >>> model = torch.nn.ModuleDict({"weekday": torch.nn.Embedding(7, 16)})
        >>> with warnings.catch_warnings(record=True, action="always") as said:
        ...     _ = embcomp.compress_(model, embcomp.HashingTrick(rows=3))
        >>> print(said[0].message)
        compress_: 'weekday': 2 different vectors for 7 ids; give small tables embcomp.Full()
    """


def note(plan: TablePlan, dims: Mapping[str, int], padding: int | None, bytes_before: int, bytes_after: int) -> str:
    """The note about a table; "" if there is nothing to note.

    Args:
        plan: the plan by which the ids of the table become vectors.
        dims: the width of each store.
        padding: an id that reads no rows, or None.
        bytes_before: the bytes of the table before the swap.
        bytes_after: the bytes of its replacement.
    """
    said = []
    if bytes_after > bytes_before:
        said.append("larger than before")
    ids, vectors = plan.table.num_embeddings, different_vectors(plan, dims, padding)
    if vectors is not None and vectors != ids:
        said.append(f"{vectors} different vector{'s'[: vectors > 1]} for {ids} ids")
    return ", ".join(said)


@torch.no_grad()
def different_vectors(plan: TablePlan, dims: Mapping[str, int], padding: int | None = None) -> int | None:
    """The number of different vectors that the ids of a small table can have, with padding; None for other tables."""
    encoder, number = plan.encoder, plan.table.num_embeddings
    buffer = next(encoder.buffers(), None)
    if number is None or number > FEW or (buffer is not None and buffer.is_meta):
        return None
    ids = torch.arange(number, device=None if buffer is None else buffer.device)
    ids = ids if padding is None else ids[ids != padding]
    if not len(ids):
        return number
    training = encoder.training
    encoder.eval()  # what is dropped at random is not what ids share
    read, handed = encoder(ids), encoder.hand(ids)
    encoder.train(training)
    # Random rows in the place of those in the stores, which may be equal by chance (ones) or elsewhere (meta).
    chunks = zip(read, plan.chunks, strict=True)
    looked_up = [_read(rows, chunk.store, dims[chunk.store]) for rows, chunk in chunks]
    vectors = plan.combiner([*looked_up, *(values.cpu() for values in handed)])
    return len((vectors * 1e4).round().unique(dim=0)) + (padding is not None)


def _read(chunk: Rows, store: str, dim: int) -> Tensor:
    """The vectors of a chunk, [N, dim], from random rows, each drawn by its number and the store's name."""
    numbers, places = chunk.rows.cpu().unique(return_inverse=True)
    rows = torch.stack([_random_row(f"{store}/{number}", dim) for number in numbers.tolist()])[places]
    weights = 1.0 if chunk.weights is None else chunk.weights.cpu().float().unsqueeze(-1)
    return (rows * weights).sum(1)


def _random_row(name: str, dim: int) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    return torch.randn(dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu")


def warn(notes: Sequence[tuple[str, str]]) -> None:
    """Issue one warning for all tables of a call of `compress_`, from (name, note) pairs."""
    noted = [f"{name!r}: {said}" for name, said in notes if said]
    if noted:
        more = f"; and {len(noted) - 5} more tables" if len(noted) > 5 else ""
        text = f"compress_: {'; '.join(noted[:5])}{more}; give small tables embcomp.Full()"
        warnings.warn(text, CompressionWarning, stacklevel=3)
