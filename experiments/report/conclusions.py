"""The page `conclusions.md`: the conclusions of a published comparison, checked on the results of the frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.files import write_text
from experiments.load import CONFIGS, load
from experiments.report.anchor import section
from experiments.report.claims import CLAIMS, FULL, FULL_LOOK_UP, LOOK_UPS, Claim, Side
from experiments.report.leaderboard import Entry, entries_of, setup_of, setups
from experiments.report.look_ups import STEP, times

NOISE = 0.001
"""The least difference that counts where runs have one seed."""

_NOT_RUN = "not run"
_INTRODUCTION = """\
The conclusions of "Experimental Analysis of Large-scale Learnable Vector Storage Compression" (Zhang et al., PVLDB
17(4), [arXiv 2311.15578](https://arxiv.org/abs/2311.15578)), line by line, on the set-ups of
`experiments/configs/frame-*.toml`. Published figures are AUC on Avazu / Criteo (Table 5, one seed). A line holds if the
difference is as stated, and is within noise if it misses that by less than the larger standard deviation over seeds, or
.001. Of several entries of a side the best on the test split is taken. Runs of other experiments with the same settings
count. The page is written by `python -m experiments report --markdown docs/results` from the results alone: lines that
say "not run" fill themselves when their runs are there. Avazu, Criteo and KDD Cup 2012 are for those who hold them."""

_COSTS = """\
## Tensor trains and deep hash are the slowest by far, and they and shared rows alone save bytes in training

Look-ups and training steps are those of `python -m experiments bench frame`, over those of the full table, at a tenth
of its bytes; published look-ups are milliseconds on Criteo over the .88 of full tables, least and most over the
budgets. Training bytes are the largest of all lines above at 10 % of served bytes: those of methods that are fitted to
trained tables are the full tables'.
"""


@dataclass(frozen=True)
class Found:
    """The two sides of a claim in one set-up, and whether it holds.

    Attributes:
        better: the text of the side that should be better.
        worse: the text of the other side.
        difference: their difference; None without both.
        verdict: "holds", "does not hold", "within noise" or "not run".
    """

    better: str
    worse: str
    difference: float | None
    verdict: str


def write(results: Path, folder: Path) -> Path:
    """Write the page.

    Raises:
        InputError: there are no results.
    """
    frames = entries_by_frame(results)
    found = {claim.title: {title: check(claim, entries) for title, entries in frames.items()} for claim in CLAIMS}
    lines = ["# conclusions", "", *_INTRODUCTION.split("\n"), "", *_summary(found, list(frames)), ""]
    for claim in CLAIMS:
        lines += [*_section(claim, found[claim.title]), ""]
    lines += [*_costs(results, frames), "", *section(results), ""]
    path = folder / "conclusions.md"
    write_text(path, "\n".join(lines).rstrip() + "\n")
    return path


def entries_by_frame(results: Path) -> dict[str, list[Entry]]:
    """Return the entries in served bytes of each configuration of the frame, by its title; empty if none has run."""
    known, frames = setups(results), {}
    for path in sorted(CONFIGS.glob("frame-*.toml")):
        run = next(load(path).runs())
        title = f"{run.model.name} on {run.dataset}"
        entries = entries_of(title, known.get(setup_of(run.dataset, run.model.name, run.to_dict()), []))
        frames[title] = [entry for entry in entries if entry.count == "served"]
    return frames


def check(claim: Claim, entries: Sequence[Entry]) -> Found:
    """Check a claim on the entries of one set-up."""
    sides = [_of(side, entries) for side in (claim.better, claim.worse)]
    if None in sides or not entries:
        return Found(_text(sides[0], entries), _text(sides[1], entries), None, _NOT_RUN)
    (better, noise), (worse, other) = [_score(side, entries) for side in sides]
    difference, noise = better - worse, max(noise, other, NOISE)
    holds = difference >= claim.by
    verdict = "holds" if holds else "within noise" if difference > claim.by - noise else "does not hold"
    return Found(_text(sides[0], entries), _text(sides[1], entries), difference, verdict)


def _of(side: Side, entries: Sequence[Entry]) -> Entry | str | None:
    """Return the best entry of a side; `FULL` for the full tables, None if there is none."""
    if side.name == FULL:
        return FULL
    for budget in side.budgets:
        chosen = [e for e in entries if e.budget == budget and (not side.methods or e.method in side.methods)]
        if chosen := [entry for entry in chosen if side.chosen(entry)]:
            return min(chosen, key=lambda entry: entry.rank)
    return None


def _score(side: Entry | str | None, entries: Sequence[Entry]) -> tuple[float, float]:
    """Return the score of a side and its deviation; that of the full tables is in each entry's difference to them."""
    if isinstance(side, Entry):
        return side.score, side.spread
    return entries[0].score - entries[0].to_full, 0.0


def _text(side: Entry | str | None, entries: Sequence[Entry]) -> str:
    if side is None or not entries:
        return _NOT_RUN
    if not isinstance(side, Entry):
        return f"{_score(side, entries)[0]:.4f}"
    spread = f" ± {side.spread:.4f}" if side.seeds > 1 else ""
    return f"{side.label}, {100 * side.served_nbytes / side.full_nbytes:.3g} %: {side.score:.4f}{spread}"


def _summary(found: Mapping[str, Mapping[str, Found]], titles: Sequence[str]) -> Iterator[str]:
    yield f"| conclusion | {' | '.join(titles)} |"
    yield f"|---|{'---|' * len(titles)}"
    for number, (title, by_frame) in enumerate(found.items(), 1):
        verdicts = (f"**{each.verdict}**" if each.verdict == "holds" else each.verdict for each in by_frame.values())
        yield f"| {number}. {title} | {' | '.join(verdicts)} |"


def _section(claim: Claim, found: Mapping[str, Found]) -> Iterator[str]:
    yield f"## {claim.title}"
    yield ""
    bound = f"at least {claim.by:+.4f}".replace("+0.0000", "0")
    yield f"Published: {claim.published}. Checked: {claim.better.name} less {claim.worse.name} is {bound}."
    yield ""
    yield f"| set-up | {claim.better.name} | {claim.worse.name} | difference | |"
    yield "|---|---|---|---:|---|"
    for title, each in found.items():
        if {each.better, each.worse} != {_NOT_RUN}:
            difference = "–" if each.difference is None else f"{each.difference:+.4f}"
            yield f"| {title} | {each.better} | {each.worse} | {difference} | {each.verdict} |"
    missing = [title for title, each in found.items() if {each.better, each.worse} == {_NOT_RUN}]
    if missing:
        yield ""
        yield f"Not run: {', '.join(missing)}."
    yield ""
    yield claim.why


def _costs(results: Path, frames: Mapping[str, Sequence[Entry]]) -> Iterator[str]:
    """Yield the section on times and on memory while training."""
    look_ups, steps = times(results), times(results, STEP)
    yield _COSTS
    yield "| method | look-up, published | look-up | training step | training bytes |"
    yield "|---|---:|---:|---:|---:|"
    for method, published in LOOK_UPS.items():
        said = "–" if published is None else " to ".join(dict.fromkeys(_x(ms / FULL_LOOK_UP) for ms in published))
        shares = [
            entry.training_nbytes / entry.full_nbytes
            for entries in frames.values()
            for entry in entries
            if entry.method == method and entry.budget == 0.1
        ]
        training = f"{100 * max(shares):.3g} %" if shares else _NOT_RUN
        yield f"| {method} | {said} | {_ratio(look_ups, method)} | {_ratio(steps, method)} | {training} |"


def _ratio(ratios: Mapping[str, float], method: str) -> str:
    return _x(ratios[method]) if method in ratios else _NOT_RUN


def _x(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"
