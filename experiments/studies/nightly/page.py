"""The page of the nights: a table of the methods, and one of the days."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.studies import study
from experiments.studies.nightly.nights import K
from experiments.studies.nightly.runs import EXPERIMENT

Night = Mapping[str, Any]

_TEXT = f"""A model of news that is retrained every night, on the clicks of Globo.com of seven days. A reader is the
mean of the articles clicked before, plus one vector for all readers; scores are dot products. *Chain*: the model of the
night before, whose table gets rows or places for the new articles, is trained on the clicks of the day, with an anchor.
*Cold*: a model is trained from nothing on all clicks so far, in which all days count alike. *Day*: a model is trained
from nothing on the clicks of the day. All figures are R@{K} in percent, all articles ranked, on clicks of the day that
were held out; on those of *new* articles (first clicked on that day); on clicks of the *next day* to articles known at
night. *Served*: what the exported program and the index of 4 bits answer. One seed; means over the nights from the
second on. Written by `python -m experiments nightly`."""
_SAMPLE = """Sample: {readers:.0%} of the readers, at most {tested:,} clicks tested for each figure; width
{embedding_dim}, {epochs} epochs cold and {epochs_of_a_day} epochs of a day, at least {least_steps} steps,
anchor {anchor}. On days with few clicks a handful of articles has most of them, and figures jump."""
_COSTS = """Table: bytes as it is served. Program: bytes of the exported tables of the readers' program. Seconds:
processor time of a night, clustering and tokenizer included."""
_MIXED = """New readers on the articles of the night before, on the articles that both know; *half*: on an index of
which half is refilled. Moved: how far making room for new articles alone moved those that were trained, as a share of
their squares. Cold models were also turned onto the ones of the night before (`align_`), where that is exact. Answers:
those that a service gave while it swapped the pair, the wrong ones among them, and the pairs of two versions that it
refused."""


def write_markdown(results: Path, folder: Path) -> Path:
    """Write the tables of all methods."""
    files = list(study.read(results, EXPERIMENT))
    config = files[0]["config"]
    lines = [
        _plain(_TEXT),
        "",
        _plain(_SAMPLE.format(**config["data"], **config["training"])),
        "",
        "## Quality and cost",
        "",
        *study.table(_QUALITY[0], "l" + "r" * len(_QUALITY[1]), map(_quality, files)),
        "",
        _plain(_COSTS),
        "",
        "## An index of the night before",
        "",
        _plain(_MIXED),
        "",
        *study.table(_INDEX[0], "l" + "r" * (len(_INDEX[0]) - 1), map(_index, files)),
        "",
        "## Day by day",
        "",
        "Chain / cold.",
        "",
        *study.table(*_days(files)),
    ]
    return study.write_page(folder, EXPERIMENT, lines)


def _plain(text: str) -> str:
    return " ".join(text.split())


_QUALITY: tuple[list[str], list[str]] = (
    [
        "method", "table", "program", "index", "chain", "cold", "day", "chain, new", "cold, new", "day, new",
        "chain, next day", "cold, next day", "day, next day", "served", "seconds, chain", "seconds, cold",
    ],
    [
        "served_nbytes", "program_nbytes", "index_nbytes", "chain", "cold", "alone", "chain_new", "cold_new",
        "alone_new", "chain_next_day", "cold_next_day", "alone_next_day", "served", "chain_seconds", "cold_seconds",
    ],
)  # fmt: skip


def _quality(file: Mapping[str, Any]) -> list[str]:
    later = file["nights"][1:]
    cells = [file["label"]]
    for name in _QUALITY[1]:
        value = _mean(night.get(name) for night in later)
        if name.endswith("nbytes"):
            cells.append(f"{later[-1][name]:,}")
        elif value is None:
            cells.append("–")
        else:
            cells.append(f"{value:.1f}" if "seconds" in name else f"{100 * value:.1f}")
    return cells


_INDEX: tuple[list[str], list[Callable[[Night], float | None]]] = (
    [
        "method", "same night", "chain", "chain, half", "cold", "cold, turned", "moved", "answers", "wrong",
        "refused",
    ],
    [
        lambda night: night["chain_index"]["new_new"],
        lambda night: night["chain_index"]["new_old"],
        lambda night: night["chain_index"]["half"],
        lambda night: night["cold_index"]["new_old"],
        lambda night: None if night["aligned_index"] is None else night["aligned_index"]["new_old"],
        lambda night: night["moved"],
    ],
)  # fmt: skip


def _index(file: Mapping[str, Any]) -> list[str]:
    later = file["nights"][1:]
    means = [_mean(map(give, later)) for give in _INDEX[1]]
    swaps = [sum(night["swap"][name] for night in later) for name in ("answers", "wrong", "refused")]
    return [
        file["label"],
        *("–" if value is None else f"{100 * value:.1f}" for value in means[:-1]),
        f"{means[-1]:.3f}",
        *(f"{number:,}" for number in swaps),
    ]


def _days(files: Sequence[Mapping[str, Any]]) -> tuple[list[str], str, Iterator[list[str]]]:
    """The header, the sides and the rows of the table of days."""
    nights = files[0]["nights"]
    before = [0, *(night["articles"] for night in nights)]
    header = ["day", "new articles", "clicks", *(file["label"] for file in files)]
    rows = (
        [
            str(day + 1),
            f"{night['articles'] - before[day]:,}",
            f"{night['clicks']:,}",
            *(
                f"{100 * file['nights'][day]['chain']:.1f} / {100 * file['nights'][day]['cold']:.1f}"
                if day < len(file["nights"])
                else "–"
                for file in files
            ),
        ]
        for day, night in enumerate(nights)
    )
    return header, "r" * len(header), rows


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
