"""The checks of a file's codes, pieces and neighbours of SemanticIds that need no data."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from embcomp.semantic_ids import Neighbours, Tokenizer
from embcomp.semantic_ids.pieces.base import PIECES
from experiments.config.options import hint, misfits, unknown


def code_problems(key: str, options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of codes, pieces and neighbours that can be found without data."""
    for name, kind, known in (("codes", "tokenizer", Tokenizer.by_name), ("pieces", "kind", PIECES)):
        settings = options.get(name)
        if settings is None:
            continue
        if not isinstance(settings, Mapping):
            yield f"{key}.{name}: must be a table of settings, not {settings!r}"
            continue
        if str(settings.get(kind)) not in known:
            yield f"{key}.{name}.{kind}: unknown {kind} {settings.get(kind)!r}{hint(str(settings.get(kind)), known)}"
            continue
        given = {setting: value for setting, value in settings.items() if setting != kind}
        call = known[str(settings[kind])]
        yield from unknown(f"{key}.{name}", given, set(inspect.signature(call).parameters) - {"settings"})
        yield from misfits(f"{key}.{name}", given, call)
    neighbours = options.get("neighbours")
    if neighbours is not None and not isinstance(neighbours, Mapping):
        yield f"{key}.neighbours: must be a table of settings, not {neighbours!r}"
    elif neighbours is not None:
        yield from unknown(f"{key}.neighbours", neighbours, ["k", "temperature"])
        yield from misfits(f"{key}.neighbours", neighbours, Neighbours.of)
