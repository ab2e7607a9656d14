"""Look-ups in packed rows on a grid (`embcomp.ops.grid`): in plain torch, and compiled."""

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp.ops import native
from embcomp.ops.hashing import check_rows_inside, pointer, readable
from embcomp.ops.packed_rows import gather_rows, unpack_rows


def decode(codes: Tensor, bits: int, step: Tensor) -> Tensor:
    """The values step * (code + 1/2 - 2^(bits-1)): uint8 [N, dim] and float32 [1] or [N, 1] -> float32 [N, dim].

    Example:
        >>> import torch
        >>> decode(torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8), 2, torch.tensor([0.1]))
        tensor([[-0.1500, -0.0500,  0.0500,  0.1500]])
    """
    return (codes.float() - (2 ** (bits - 1) - 0.5)) * step


def steps_of_rows(step: Tensor, shared: int, rows: Tensor) -> Tensor:
    """The step of each row, [1] or [N, 1]: `shared` rows that follow each other share one, 0 stands for all."""
    if not shared:
        return step
    return step[rows if shared == 1 else rows // shared].unsqueeze(-1)


def grid_bags_reference(
    packed: Tensor,
    bits: int,
    dim: int,
    step: Tensor,
    shared: int,
    rows: Tensor,
    offsets: Tensor | None = None,
    weights: Tensor | None = None,
    mode: str = "sum",
) -> Tensor:
    """`grid_bags` in plain torch: any device, traceable by torch.compile and torch.export."""
    codes = unpack_rows(gather_rows(packed, rows), bits, dim)
    vectors = decode(codes, bits, steps_of_rows(step, shared, rows))
    if offsets is None:
        return vectors if weights is None else vectors * weights.unsqueeze(-1)
    order = torch.arange(rows.shape[0], device=rows.device)
    return F.embedding_bag(order, vectors, offsets, mode=mode, per_sample_weights=weights, include_last_offset=True)


def grid_bags(
    packed: Tensor,
    bits: int,
    dim: int,
    step: Tensor,
    shared: int,
    rows: Tensor,
    offsets: Tensor | None = None,
    weights: Tensor | None = None,
    mode: str = "sum",
) -> Tensor:
    """Bags of decoded rows.

    Args:
        packed: uint8 [all rows, bytes], from `embcomp.ops.packed_rows.pack_rows`.
        bits: of a value.
        dim: values of a row.
        step: float32 [1], or a step for every `shared` rows.
        shared: how many rows that follow each other share a step; 0 where all do.
        rows: int64 [N].
        offsets: int64 [bags + 1]; without them each row comes out by itself.
        weights: float32 [N], a factor for each row.
        mode: "sum" or "mean"; empty bags are zero.

    Returns:
        float32 [bags, dim], or [N, dim].

    Raises:
        IndexError: a row that the table does not have.

    Example:
        >>> import torch
        >>> from embcomp.ops.packed_rows import pack_rows
        >>> packed = pack_rows(torch.tensor([[3, 0], [2, 1]], dtype=torch.uint8), bits=2)
        >>> grid_bags(packed, 2, 2, torch.tensor([1.0]), 0, torch.tensor([0, 1]), torch.tensor([0, 2]))
        tensor([[ 2., -2.]])
    """
    tensors = [t for t in (packed, step, rows, offsets, weights) if t is not None]
    lib = native.library() if readable(*tensors) and mode in ("sum", "mean") else None
    if lib is None:
        return grid_bags_reference(packed, bits, dim, step, shared, rows, offsets, weights, mode)
    bounds = torch.tensor([0, len(rows)], device="cpu") if offsets is None else offsets.contiguous()
    rows = rows.contiguous()
    check_rows_inside(rows, bounds, packed.shape[0])
    weights = None if weights is None else weights.contiguous()
    count = len(rows) if offsets is None else len(offsets) - 1
    out = torch.empty(count, dim, dtype=torch.float32, device="cpu")
    lib.grid_bags(
        pointer(packed), ctypes.c_size_t(packed.shape[1]), ctypes.c_size_t(dim), ctypes.c_size_t(bits), pointer(step),
        ctypes.c_int64(shared), pointer(rows), pointer(None if offsets is None else bounds), ctypes.c_size_t(count),
        pointer(weights), ctypes.c_int(mode == "mean"), pointer(out),
    )  # fmt: skip
    return out
