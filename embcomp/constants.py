"""The modules whose buffers stay filled: maps, keys and masks, which training does not change by gradients."""

from typing import Any, ClassVar, Self

from torch import nn


class KeptBuffers(nn.Module):
    """A module whose buffers move with the model, but are never emptied: nothing would fill them again."""

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move buffers, but never empty them (`to_empty`) or make them meta."""
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            device = self.get_buffer(name).device
            self._buffers[name] = buffer if device.type == "meta" else buffer.to(device)
        return self


class Maps(KeptBuffers):
    """A module whose buffers are constants: keys and maps, which averages of weights leave alone, too."""

    constant_buffers: ClassVar[bool] = True
