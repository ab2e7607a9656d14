"""The maps that the encoders of several tables share."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from embcomp import configs
from embcomp.constants import Maps

SHARED_MAPS: dict[str, type["SharedMaps"]] = {}
"""The shared maps by class name, so that a plan can be written and read."""


class SharedMaps(Maps):
    """The maps that the encoders of several tables hold together.

    Each encoder saves them under its own name, as if they were its own buffers, by `save_for` and `load_for`. As a
    submodule they save and load nothing.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        configs.join(SHARED_MAPS, cls)

    def save_for(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Write the maps into a state dict under the prefix of the encoder that holds them."""
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def load_for(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Read the maps from the part of a state dict that `of_state` gave."""
        super()._load_from_state_dict(state_dict, prefix, *args)

    def of_state(self, state_dict: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
        """Return the part of an encoder's state that belongs to these maps."""
        names = [f"{prefix}{name}" for name, map in self._buffers.items() if map is not None]
        return {name: state_dict[name] for name in names if name in state_dict}

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Save nothing: the encoders do."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load nothing: the encoders do."""
