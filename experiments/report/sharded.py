"""The page `sharded.md`: the results of `parity`, `kills` and `bench sharded`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from experiments.markdown import table, write_page

Rows = Sequence[Mapping[str, Any]]


def write(results: Path, folder: Path) -> Path | None:
    """Write the page, with a section for each file that exists; return None if there is none."""
    kinds = {
        "sharded-parity/2-processes.json": _parity,
        "sharded-kills/kills.json": _kills,
        "bench/sharded.json": _bench,
    }
    parts = [
        line
        for name, lines in kinds.items()
        if (results / name).exists()
        for line in lines(json.loads((results / name).read_text()))
    ]
    if not parts:
        return None
    return write_page(folder, "sharded", ["Training on several processes of one machine, over gloo.", *parts])


def _parity(rows: Rows) -> Iterator[str]:
    ways = list(dict.fromkeys((row["sharding"], row["optimizer"]) for row in rows))
    worst: dict[tuple[str, str, str], float] = {}
    for row in rows:
        key = row["method"], row["sharding"], row["optimizer"]
        worst[key] = max(worst.get(key, 0.0), row["loss"], row["tables"], row["dense"])
    yield from ("", f"## {rows[0]['processes']} processes against one", "")
    yield (
        f"The largest difference of a loss or a weight over {rows[0]['steps']} steps from the same start, bags and "
        f"sequences, {len(rows)} cases; tables change by {min(row['moved'] for row in rows):.2g} or more. Written by "
        "`python -m experiments parity`."
    )
    yield from _table(
        ["method", *(f"{sharding.replace('_', '-')}, {optimizer}" for sharding, optimizer in ways)],
        [
            [method, *(f"{worst[method, *way]:.1e}" if (method, *way) in worst else "–" for way in ways)]
            for method in dict.fromkeys(row["method"] for row in rows)
        ],
    )


def _kills(found: Rows) -> Iterator[str]:
    kills, outcomes = found[0]["kills"], list(found[0]["outcomes"].values())
    waits = [kill["others_ended_after"] for kill in kills if kill["others_ended_after"] is not None]
    phases = ", ".join(f"{number} in phase {name!r}" for name, number in Counter(k["phase"] for k in kills).items())
    yield from ("", "## Killed", "")
    yield (
        f"A training of {outcomes[0]['steps']} steps on {found[0]['processes']} processes, killed with SIGKILL "
        f"{len(kills)} times ({phases}), {'equals' if found[0]['equal'] else 'DIFFERS FROM'} an undisturbed one "
        f"in the metrics and the checksum of all weights. If one process was killed, the other ended after "
        f"{max(waits):.1f} s at most. Written by `python -m experiments kills`."
    )
    names = [name for name in outcomes[0] if name != "weights"]
    yield from _table(
        ["training", *names, "SHA-256 of the weights"],
        [
            [training, *(f"{outcome[name]:.6g}" for name in names), f"{outcome['weights'][:16]}…"]
            for training, outcome in found[0]["outcomes"].items()
        ],
    )


def _bench(rows: Rows) -> Iterator[str]:
    yield from ("", "## Time and traffic", "")
    yield (
        "DLRM, 26 features, whole batches of one size on processes of one thread each. Written by "
        "`python -m experiments bench sharded`; ratios are medians with their 10th and 90th percentile."
    )
    yield from _table(
        ["candidate", "against", "time", "samples per second", "sent by a process in a step"],
        [
            [
                row["name"],
                row["against"],
                f"{row['ratio']:.2f} ({row['low']:.2f}–{row['high']:.2f})",
                f"{row['samples_per_second']:,.0f}",
                decimal(row["sent_bytes_per_step"]),
            ]
            for row in rows
        ],
    )


def _table(header: list[str], lines: list[list[str]]) -> Iterator[str]:
    yield from ("", *table(header, "l" + "r" * (len(header) - 1), lines))
