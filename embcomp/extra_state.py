"""Configurations as tensors in a state dict, because every checkpoint format can hold a tensor."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def to_state(config: Mapping[str, Any]) -> Tensor:
    """Return a configuration as its JSON, uint8 [bytes]."""
    return torch.frombuffer(bytearray(json.dumps(config, sort_keys=True).encode()), dtype=torch.uint8)


def from_state(state: Any, owner: str) -> dict[str, Any]:
    """Return the configuration that `to_state` wrote.

    Raises:
        ValueError: it is not one, because it was averaged with the weights, say; the text begins with `owner`.
    """
    if not isinstance(state, Tensor) or state.dtype != torch.uint8 or state.dim() != 1:
        what = f"{state.dtype} {list(state.shape)}" if isinstance(state, Tensor) else type(state).__name__
    else:
        try:
            config = json.loads(bytes(state.cpu().tolist()))
        except ValueError:
            config = None
        if isinstance(config, dict):
            return config
        what = "bytes that are no configuration"
    raise ValueError(
        f"{owner}: the configuration in the state ('_extra_state') is {what}, expected the uint8 bytes that were "
        "saved: average and cast nothing but floating-point tensors of a state, and copy the others from one model"
    )
