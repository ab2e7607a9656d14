"""What the fuzzers share: how long they try, what counts as an outcome, and the table of counts at the end.

In CI each area makes a fixed number of tries from fixed seeds. `EMBCOMP_FUZZ_SECONDS=3600 pytest tests/fuzz` goes on
for an hour in each area, from ever new seeds; a failure names the seed and the smallest input that shows it.
"""

import collections
import itertools
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

import embcomp

SECONDS = float(os.environ.get("EMBCOMP_FUZZ_SECONDS", "0"))
CLEAR = (ValueError, TypeError, IndexError, KeyError)
RIGHT, REFUSED = "right", "clear errors"
_LIBRARY = str(Path(embcomp.__file__).parent)
_TRIES = 400  # of one seed


class Tally(collections.Counter[str]):
    """The outcomes of one area."""

    def attempt(self, call: Callable[[], Any]) -> Any:
        """What `call` returns; None where it was refused by an error of the library itself, which is counted.

        Raises:
            AssertionError: another kind of error, or one from below the library, whose text cannot name the argument.
        """
        try:
            return call()
        except CLEAR as error:
            place = traceback.extract_tb(error.__traceback__)[-1].filename
            if not place.startswith(_LIBRARY) or len(str(error)) < 10:
                raise AssertionError(f"an error from deep inside ({place}) or without words: {error!r}") from error
        self[REFUSED] += 1
        return None

    def is_right(self) -> None:
        """Counts a result that has been compared."""
        self[RIGHT] += 1


def fuzz(
    record_property: Callable[[str, object], None],
    area: str,
    cases: SearchStrategy[Any],
    check: Callable[[Any, Tally], None],
    tries: int,
) -> Tally:
    """Tries `check` on inputs until the number of tries, or the time of EMBCOMP_FUZZ_SECONDS, is reached.

    Args:
        record_property: pytest's fixture; the counts travel with the report.
        area: a line of the table.
        cases: inputs.
        check: makes a call and compares; it counts what has happened, once for each input.
        tries: without a time.
    """
    tally, start = Tally(), time.monotonic()
    for number in itertools.count():
        left = _TRIES if SECONDS else min(_TRIES, tries - number * _TRIES)
        if left <= 0 or (SECONDS and time.monotonic() - start > SECONDS):
            break

        @seed(number)
        @settings(
            max_examples=left, database=None, derandomize=False, deadline=None, print_blob=False,
            phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(cases)
        def one(case: Any) -> None:
            check(case, tally)

        try:
            one()
        except BaseException as error:
            error.add_note(f"area {area}, seed {number}")
            raise
    record(record_property, area, tally)
    return tally


def record(record_property: Callable[[str, object], None], area: str, tally: Tally) -> None:
    """Adds the counts to those of an area."""
    record_property("fuzz", {"area": area, "tries": tally.total(), **tally})


def summary(reports: list[Any]) -> list[str]:
    """The counts of all areas, a line each."""
    areas: dict[str, Tally] = {}
    for counts in (dict(value) for report in reports for name, value in report.user_properties if name == "fuzz"):
        areas.setdefault(counts.pop("area"), Tally()).update(counts)
    if not areas:
        return []
    columns = ["tries", RIGHT, REFUSED]
    lines = [f"{'area':44}" + "".join(f"{name:>14}" for name in columns)]
    return lines + [f"{area:44}" + "".join(f"{areas[area][name]:14,}" for name in columns) for area in sorted(areas)]
