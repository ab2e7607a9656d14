"""The launch of Triton's kernels, and what all of them are given."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from embcomp.ops.together import available
from embcomp.ops.together.batch import Batch, Column

BLOCK = 256
"""The number of ids that a program of a kernel encodes."""


def addresses(batch: Batch, buffers: Sequence[Tensor], first: Column | None = None) -> list[int]:
    """Return where the buffer of each part lies, or its row `first`; it lies there as long as its memory is kept.

    Raises:
        RuntimeError: a buffer is on another device, whose addresses are invalid here, or is not contiguous.
    """
    for buffer in buffers:
        if buffer.device != batch.values.device:
            raise RuntimeError(
                f"tables {batch.names}: a map is on {buffer.device}, the ids are on {batch.values.device}: move "
                "the module or its inputs"
            )
        if not buffer.is_contiguous():
            raise RuntimeError(f"tables {batch.names}: a map is not contiguous")
    starts = [0] * len(buffers) if first is None else first
    return [
        buffer.data_ptr() + start * buffer.stride(0) * buffer.itemsize
        for buffer, start in zip(buffers, starts, strict=True)
    ]


def launch(kernel: str, batch: Batch, columns: Sequence[Column], *out: Tensor, **further: Any) -> None:
    """Launch a kernel over the ids of a batch, one row of programs for each part.

    Args:
        kernel: the name of the kernel.
        batch: the ids, whose range the kernel checks.
        columns: the numbers of each part, after its largest id, in the order that the kernel reads them.
        out: the results of the kernel.
        further: further arguments of the kernel.

    Raises:
        RuntimeError: an id is out of range, raised as an asynchronous assertion.
    """
    sizes = batch.sizes
    if not any(sizes):
        return
    ends = batch.part_counts.cumsum(0)
    source_ends = ends
    if batch.order is not None:
        order = batch.constants((batch.order,), batch.counts).view(-1)
        source_ends = batch.counts.cumsum(0).index_select(0, order)
    numbers = batch.constants((tuple(batch.last), *map(tuple, columns)), batch.values)
    inside = torch.ones(1, dtype=torch.int32, device=batch.values.device)
    grid = (-(-max(sizes) // BLOCK), len(sizes))
    with torch.cuda.device_of(batch.values):
        getattr(available.kernels(), kernel)[grid](
            batch.values.contiguous(), ends, source_ends, numbers, len(sizes), inside, *out, BLOCK=BLOCK, **further
        )
    batch.check(inside)
