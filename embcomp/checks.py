"""The checks of settings that tokenizers, pieces and neighbours share."""

from typing import Any


def check_whole(name: str, setting: str, value: Any, least: int = 1) -> None:
    """Raise ValueError if a setting is not an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: {setting} must be an integer of at least {least}, got {value!r}")
