"""The arguments of a call of an embedding bag, checked and converted to one form."""

from dataclasses import dataclass

import torch
from torch import Tensor

from embcomp.ops.checks import assert_offsets, check_offsets, check_same_device, check_tensor, readable


@dataclass(frozen=True)
class BagCall:
    """Bags of ids, end to end.

    Attributes:
        ids: the ids, integers [N].
        bounds: the bounds of the bags, int64 [bags + 1], from 0.
        weights: a weight for each id, float [N], or None.
        spare: True if the last bag holds ids that belong to no bag, and must be dropped from the result.
    """

    ids: Tensor
    bounds: Tensor
    weights: Tensor | None
    spare: bool = False


def bag_call(
    input: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    *,
    mode: str,
    include_last_offset: bool,
    device: torch.device,
) -> BagCall:
    """Check the arguments of `torch.nn.EmbeddingBag.forward`, for rows on `device`.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: shapes, types, offsets or devices do not fit, or weights are given with another mode than "sum".
    """
    check_tensor(input, "input")
    check_same_device(input, "input", device)
    if weights is not None:
        _check_weights(weights, input, mode)
        weights = weights.reshape(-1)
    if input.dim() == 2:
        if offsets is not None:
            raise ValueError("offsets must be None when input is two-dimensional: each row is a bag")
        bags, length = input.shape
        return BagCall(input.reshape(-1), torch.arange(bags + 1, device=input.device) * length, weights)
    if input.dim() != 1:
        raise ValueError(f"input must have one or two dimensions, got shape {list(input.shape)}")
    if offsets is None:
        raise ValueError("offsets are needed when input is one-dimensional")
    check_tensor(offsets, "offsets")
    check_same_device(offsets, "offsets", device)
    if offsets.dim() != 1 or offsets.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"offsets must be int64 or int32 [B], got {offsets.dtype} {list(offsets.shape)}")
    return _cut(input, offsets, weights, include_last_offset)


def _check_weights(weights: Tensor, input: Tensor, mode: str) -> None:
    check_tensor(weights, "per_sample_weights")
    if mode != "sum":
        raise ValueError(f"per_sample_weights needs mode='sum', this module has mode={mode!r}")
    if weights.shape != input.shape:
        raise ValueError(f"per_sample_weights has shape {list(weights.shape)}, but input has shape {list(input.shape)}")
    if not weights.is_floating_point():
        raise ValueError(f"per_sample_weights must be floats, got {weights.dtype}; convert with .float()")
    check_same_device(weights, "per_sample_weights", input.device)


def _cut(ids: Tensor, offsets: Tensor, weights: Tensor | None, include_last_offset: bool) -> BagCall:
    """Cut off ids after the last offset, which are in no bag: on a GPU torch adds them to the last bag."""
    number, bounds = ids.numel(), offsets.long()
    if not include_last_offset:
        bounds = torch.cat([bounds, bounds.new_full((1,), number)])
    if readable(bounds):
        if bounds.numel() == 0:
            raise ValueError("offsets are empty: with include_last_offset they hold at least the number of ids")
        check_offsets(bounds, number, first=0, given=offsets)
        last = int(bounds[-1])
        return BagCall(ids[:last], bounds, None if weights is None else weights[:last])
    assert_offsets(bounds, number)
    if not include_last_offset:
        return BagCall(ids, bounds, weights)
    return BagCall(ids, torch.cat([bounds, bounds.new_full((1,), number)]), weights, spare=True)
