"""The page `third-party.md`: the results of `python -m experiments.third_party`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.files import write_text
from experiments.third_party.counts import OUTCOMES, counts
from experiments.third_party.libraries import PACKAGES

Rows = Sequence[Mapping[str, Any]]
_INTRODUCTION = """\
Models of other libraries are built as these do and trained for some steps; all tables are swapped by four methods,
fresh and warm, and trained again. A ninth swap gives each id a separate row, warm, and must not change the loss. A
model counts by the worst of its nine tries. Written by `python -m experiments.third_party`."""


def write(results: Path, folder: Path) -> Path | None:
    """Write the page, a line for each library that has been tried; return None if none has."""
    files = {name: results / "third-party" / f"{name}.json" for name in PACKAGES}
    tried = {PACKAGES[name]: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    if not tried:
        return None
    lines = ["# third-party", "", *_INTRODUCTION.split("\n"), "", *_summary(tried), "", "## Not trained", ""]
    path = folder / "third-party.md"
    write_text(path, "\n".join([*lines, *_reasons(tried), ""]))
    return path


def _summary(tried: Mapping[str, Rows]) -> Iterator[str]:
    yield f"| library | torch | models | {' | '.join(OUTCOMES)} | tries |"
    yield f"|---|---|{'---:|' * (len(OUTCOMES) + 2)}"
    total = [0] * (len(OUTCOMES) + 2)
    for package, rows in tried.items():
        models, tries = counts(rows)
        numbers = [len(rows), *(models.get(outcome, 0) for outcome in OUTCOMES), sum(tries.values())]
        total = [a + b for a, b in zip(total, numbers, strict=True)]
        versions = rows[0]["versions"]
        yield f"| {package} {versions[package]} | {versions['torch']} | {' | '.join(map(str, numbers))} |"
    yield f"| all | | {' | '.join(map(str, total))} |"


def _reasons(tried: Mapping[str, Rows]) -> Iterator[str]:
    yield "| library | model | outcome | reason |"
    yield "|---|---|---|---|"
    for package, rows in tried.items():
        for row in rows:
            for outcome, reasons in row["outcomes"].items():
                texts = reasons if isinstance(reasons, Mapping) else [""]
                for text in texts if outcome != "trained" else ():
                    said = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
                    yield f"| {package} | {row['model']} | {outcome} | {said} |"
