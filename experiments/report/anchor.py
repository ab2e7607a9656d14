"""The anchor of the frame: figures that the author of clustered embeddings published, beside ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from experiments.report.collect import Stat
from experiments.runs.results import read_results

EXPERIMENT = "frame-gmf"
METRIC = "test/auc"

WITHIN = 0.012
"""How far ours may be below a published figure."""

PUBLISHED = {
    "Full": 0.874,
    "hash": 0.724,
    "hash, balanced": 0.724,
    "ce, four hashes side by side": 0.812,
    "hash embeddings, 4 hashes": 0.819,
    "robe": 0.822,
    "robe without signs": 0.822,
    "cce": 0.826,
    "tt": 0.836,
    "dhe": 0.846,
    "low rank": 0.851,
}
"""AUC of github.com/thomasahle/cce on MovieLens-1M, 1,024 rows of 32 floats a table, three seeds, by our labels."""


def section(results: Path) -> Iterator[str]:
    """Yield the lines of the section: each method's published figure and ours, with its bytes."""
    runs = [each for each in read_results(results) if each["experiment"] == EXPERIMENT]
    yield "## The anchor: GMF on MovieLens-1M, 1,024 rows of 32 floats a table"
    yield ""
    yield (
        "AUC as the author of [clustered embeddings](https://github.com/thomasahle/cce) published it (three seeds), "
        "and ours in the same set-up (`python -m experiments run frame-gmf`), which should be at most "
        f"{WITHIN:g} below. Bytes are those of the served form, maps and keys included; two tables of 1,024 rows take "
        "262,144."
    )
    yield ""
    yield "| method | published | ours | difference | served bytes | within |"
    yield "|---|---:|---:|---:|---:|---|"
    for label, published in PUBLISHED.items():
        mine = [run for run in runs if run["label"] == label and METRIC in run["metrics"]]
        if not mine:
            yield f"| {label} | {published:.3f} | not run | – | – | – |"
            continue
        ours, nbytes = Stat.of([run["metrics"][METRIC] for run in mine]), max(run["served_nbytes"] for run in mine)
        difference = ours.mean - published
        verdict = "yes" if difference >= -WITHIN else "**no**"
        yield f"| {label} | {published:.3f} | {ours} ({ours.count}) | {difference:+.4f} | {nbytes:,} | {verdict} |"
    yield ""
    yield (
        "The published hash multiplies and shifts, which spreads ids almost evenly, as ours does with `balanced=True`. "
        "ROBE multiplies blocks by signs, which the published code leaves out: compare the line without."
    )
