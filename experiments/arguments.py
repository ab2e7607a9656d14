"""Arguments of the command line, from text to what they mean."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase

from experiments.errors import InputError


def matches(name: str, pattern: str) -> bool:
    """Return whether a run's name, or a part of it, matches a pattern of `--filter`."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*{pattern}*")


def seeds_of(text: str | None) -> set[int] | None:
    """Read `--seeds`. Raise InputError if it is no list of whole numbers."""
    try:
        return None if text is None else {int(number) for number in text.split(",")}
    except ValueError:
        raise InputError(f"--seeds {text}: give whole numbers with commas between, as 0,1,2") from None


def device_of(name: str) -> str:
    """Check `--device`. Raise InputError if there is no such device here."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        raise InputError(f"--device {name}: no such device here; leave it out for the CPU") from None
    return name


def options_of(pairs: list[str]) -> dict[str, object]:
    """Read pairs of `--option`, values as JSON where they are. Raise InputError for what is no KEY=VALUE."""
    options: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--option {pair}: write KEY=VALUE")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options
