"""The histories given to SDIM: padded, concatenated, or as positions in a matrix of distinct items."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from embcomp.ops.checks import check_inside, check_tensor, readable


class Sequences(NamedTuple):
    """The sequence arguments of `SDIM.forward`, B histories with T events in all; `check` validates them.

    Attributes:
        vectors: the vectors, float [B, L, D]; [T, D] with `offsets`; [N, D] with `places`.
        mask: bool [B, L], True for events; None if all are events.
        offsets: the begins and ends of the histories, int64 [B + 1].
        places: the position in `vectors` of each event's vector, int64 [B, L] or [T].
        signatures: the signatures of the vectors, int64 [..., words], if they are known.
    """

    vectors: Tensor
    mask: Tensor | None = None
    offsets: Tensor | None = None
    places: Tensor | None = None
    signatures: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """The shape of the events, [B, L] or [T]."""
        return self.vectors.shape[:-1] if self.places is None else self.places.shape

    @property
    def batch(self) -> int:
        return self.shape[0] if self.offsets is None else len(self.offsets) - 1

    def check(self) -> Sequences:
        """Return these sequences with offsets as int64.

        Raises:
            TypeError: one of them is not a tensor.
            ValueError: shapes or types do not fit each other.
        """
        check_floats(self.vectors, "sequence")
        for name in ("mask", "offsets", "places", "signatures"):
            if (tensor := getattr(self, name)) is not None:
                check_tensor(tensor, f"SDIM: {name}")
                check_device(tensor, name, self.vectors)
        offsets, shape = self.offsets, self.shape
        if self.places is not None and (self.vectors.dim() != 2 or self.places.dtype != torch.int64):
            raise ValueError(
                f"SDIM: places are {self.places.dtype} in a sequence {list(self.vectors.shape)}, "
                "expected int64 in [N, D]"
            )
        if offsets is not None:
            if self.mask is not None or len(shape) != 1:
                raise ValueError("SDIM: offsets go with a sequence [T, D], or places [T], and without a mask")
            if offsets.dtype not in (torch.int64, torch.int32):
                raise ValueError(f"SDIM: offsets must be int64 (floats lose events beyond 2^24), got {offsets.dtype}")
            if offsets.dim() != 1 or not len(offsets):
                raise ValueError(f"SDIM: offsets have shape {list(offsets.shape)}, expected [B + 1]")
            if readable(offsets):  # C++ would read memory beside the sequence
                if int(offsets[-1]) != shape[0]:
                    raise ValueError(f"SDIM: offsets end at {int(offsets[-1])}, the sequence has {shape[0]} events")
                if offsets[0] != 0 or (offsets.diff() < 0).any():
                    raise ValueError(f"SDIM: offsets begin at 0 and never fall, got {offsets.tolist()[:8]}")
            return self._replace(offsets=offsets.long())
        if len(shape) != 2:
            raise ValueError(f"SDIM: sequence has shape {list(self.vectors.shape)}: give [B, L, D], or offsets too")
        if self.mask is not None and (self.mask.shape != shape or self.mask.dtype != torch.bool):
            raise ValueError(
                f"SDIM: mask is {self.mask.dtype} {list(self.mask.shape)}, expected torch.bool {list(shape)}"
            )
        return self

    def events(self) -> tuple[Tensor, Tensor]:
        """Return the vector of each event, zeros where masked, and the mask."""
        vectors = self.vectors if self.places is None else taken(self.vectors, self.places)
        if self.mask is None:
            return vectors, torch.ones_like(vectors[..., 0], dtype=torch.bool)
        return vectors.masked_fill(~self.mask.unsqueeze(-1), 0.0), self.mask  # not a product: padding may hold NaN


def taken(rows: Tensor, places: Tensor) -> Tensor:
    """Return rows [N, K] at places int64 [...]: [..., K]. Unlike `rows[places]` it refuses negative places."""
    if readable(places):
        check_inside(places, len(rows))
    return rows.index_select(0, places.flatten()).view(*places.shape, rows.shape[1])


def check_floats(vectors: Tensor, name: str) -> None:
    """Raise TypeError if it is not a tensor, ValueError if it does not hold dense floats."""
    check_tensor(vectors, f"SDIM: {name}")
    if not vectors.is_floating_point():
        raise ValueError(f"SDIM: {name} must be floats, got {vectors.dtype}; convert with .float()")


def check_device(tensor: Tensor, name: str, sequence: Tensor) -> None:
    """Raise ValueError if the tensor is on another device than the sequence."""
    if tensor.device != sequence.device:
        raise ValueError(f"SDIM: {name} is on {tensor.device}, the sequence on {sequence.device}; move one of them")
