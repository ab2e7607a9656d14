"""The averages of weights (SWA, EMA), kept off buffers that are constants: keys, maps, codes, projections.

torch's `AveragedModel` takes every buffer for a statistic: with `use_buffers=True` it averages integers in float32, and
an id of the averaged model then reads another row. A module with `constant_buffers = True` declares its buffers, and
those of its submodules, to be constants. They are hidden from torch while it averages, and copied afterwards.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

_update = AveragedModel.update_parameters


def _constant(model: nn.Module) -> list[nn.Module]:
    """The modules whose buffers must not be averaged, in the order of the model."""
    held = [module for module in model.modules() if getattr(module, "constant_buffers", False)]
    return list(dict.fromkeys(submodule for module in held for submodule in module.modules()))


@contextmanager
def _hidden(modules: list[nn.Module]) -> Iterator[None]:
    held = [module.__dict__["_buffers"] for module in modules]
    for module in modules:
        module.__dict__["_buffers"] = {}
    try:
        yield
    finally:
        for module, buffers in zip(modules, held, strict=True):
            module.__dict__["_buffers"] = buffers


@functools.wraps(_update)
def update_parameters(self: AveragedModel, model: nn.Module) -> None:
    """Update as `AveragedModel.update_parameters` does, but copy constant buffers from `model`."""
    mine, theirs = _constant(self.module), _constant(model)
    with _hidden(mine), _hidden(theirs):
        _update(self, model)
    with torch.no_grad():
        for to, source in zip(mine, theirs, strict=False):
            for name, buffer in to.named_buffers(recurse=False):
                other = source._buffers.get(name)
                if other is not None and other.shape == buffer.shape:
                    buffer.copy_(other)


AveragedModel.update_parameters = update_parameters
