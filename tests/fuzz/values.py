"""Ways to spoil a tensor."""

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

EXTREME = [-(2**63), -(2**40), -2, -1, 1, 3, 500, 2**31, 2**40, 2**62, 2**63 - 1]

KINDS = ["list", "numpy", "none", "text", "meta", "sparse", "nested", "scalar", "more", "less", "longer", "scattered"]


@st.composite
def damaged(draw: st.DrawFn, tensor: Tensor, kinds: Sequence[str] = KINDS) -> Any:
    """What stands in the place of a tensor by mistake: another kind of object, layout, device or shape."""
    kind = draw(st.sampled_from(kinds))
    if kind == "list":
        return tensor.tolist()
    if kind == "numpy":
        return tensor.numpy()
    if kind == "none":
        return None
    if kind == "text":
        return "ids"
    if kind == "meta":
        return tensor.to("meta")
    if kind == "sparse":
        return tensor.to_sparse()
    if kind == "nested":
        return torch.nested.nested_tensor([tensor.reshape(-1), tensor.reshape(-1)], layout=torch.jagged)
    if kind == "scalar":
        return tensor.reshape(-1)[0] if tensor.numel() else tensor.new_zeros(())
    if kind == "more":
        return tensor.unsqueeze(draw(st.sampled_from([0, -1])))
    if kind == "less":
        return tensor[: max(0, len(tensor) - 1)] if tensor.dim() else tensor
    if kind == "longer":
        return torch.cat([tensor, tensor]) if tensor.dim() else tensor
    return torch.stack([tensor, tensor], -1)[..., 0]  # the same values, every other place in memory


@st.composite
def spoil_numbers(draw: st.DrawFn, tensor: Tensor) -> Tensor:
    """Some of the numbers replaced by others, far or near."""
    changed = tensor.clone()
    for _ in range(draw(st.integers(1, 2)) if changed.numel() else 0):
        place = draw(st.integers(0, changed.numel() - 1))
        extreme = st.sampled_from(EXTREME) if changed.dtype == torch.int64 else st.nothing()
        changed.reshape(-1)[place] = draw(extreme | st.integers(-3, 12))
    return changed
