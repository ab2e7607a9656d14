"""The search in sorted numbers, in a form that other runtimes support, too."""

import torch
from torch import Tensor


def lower_bound(numbers: Tensor, wanted: Tensor) -> Tensor:
    """Count how many of the sorted `numbers` [n] are below each of `wanted` [N], of the same integer type: int64 [N].

    In an exported graph it halves by plain operations, because ONNX has no `torch.searchsorted`.

    Example:
        >>> import torch
        >>> from embcomp.ops.search import lower_bound
        >>> lower_bound(torch.tensor([2, 4, 9]), torch.tensor([1, 4, 5, 10]))
        tensor([0, 1, 2, 3])
    """
    if not torch.compiler.is_exporting():
        return torch.searchsorted(numbers, wanted)
    return _halving(numbers, wanted)


def _halving(numbers: Tensor, wanted: Tensor) -> Tensor:
    step = 1 << numbers.numel().bit_length()  # a power of two above n
    padded = torch.cat([numbers, numbers.new_full((step - numbers.numel(),), torch.iinfo(numbers.dtype).max)])
    bound = torch.zeros_like(wanted, dtype=torch.int64)
    while step := step >> 1:
        bound = bound + step * (padded[bound + (step - 1)] < wanted).to(torch.int64)
    return bound
