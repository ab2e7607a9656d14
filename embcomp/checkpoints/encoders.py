"""The maps and configurations of a model in a checkpoint, whose state fits no others."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from embcomp.methods.base import plain
from embcomp.methods.encoder import completed

Encoders = dict[str, dict[str, Any]]


def encoders_of(state: Mapping[str, Any]) -> Encoders:
    """Return the table, configuration and map checksums of each encoder in a model's state dict.

    For `SDIM`, the other module of embcomp that stores its configuration, only the configuration.
    """
    encoders: Encoders = {}
    for key, value in state.items():
        config = _config(value) if key.endswith("_extra_state") else None
        if config is not None:
            prefix = key.removesuffix("_extra_state")
            maps = {
                name.removeprefix(prefix): f"{part.dtype} {plain(part)}".replace("torch.", "").replace("tensor ", "")
                for name, part in state.items()
                if "table" in config and name.startswith(prefix) and name != key and isinstance(part, Tensor)
            }
            encoders[prefix.rstrip(".")] = {"config": config, "maps": maps}
    return encoders


def difference(one: Encoders, other: Encoders, whose: str, others: str, names_count: bool = False) -> list[str]:
    """List the differences, a line for each table; `whose` and `others` name the two sides.

    `one` may be of an older version: settings that it lacks have their defaults.

    Names of tables do not count in a checkpoint, because they are part of the state, as are the hash keys that depend
    on them.
    """
    lines = []
    for path in sorted({*one, *other}):
        if path not in one or path not in other:
            if "table" not in (one.get(path) or other[path])["config"]:
                continue  # its tensors, too, are in one of the two alone, or the checkpoint is an older one
            lines.append(f"{path} is {whose if path in one else others} alone")
            continue
        theirs = {**other[path]["config"], **other[path]["maps"]}
        mine = {**completed(one[path]["config"], other[path]["config"]), **one[path]["maps"]}
        said = [
            f"{name}: {whose} {_short(mine.get(name))}, {others} {_short(theirs.get(name))}"
            for name in dict.fromkeys([*mine, *theirs])
            if mine.get(name) != theirs.get(name) and (names_count or name != "table")
        ]
        if said:
            subject = f"table {theirs['table']!r}" if "table" in theirs else f"{theirs['module']} {path!r}"
            lines.append(f"{subject} has another map or configuration ({'; '.join(said)})")
    return lines


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _config(value: Any) -> dict[str, Any] | None:
    """The configuration in the extra state of a module of embcomp; None for that of other modules."""
    if not isinstance(value, Tensor) or value.dtype != torch.uint8 or value.dim() != 1:
        return None
    try:
        config = json.loads(bytes(value.tolist()))
    except ValueError:
        return None
    return config if isinstance(config, dict) and {"table", "module"} & config.keys() else None
