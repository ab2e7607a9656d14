"""The counts of the outcomes of tries."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

OUTCOMES = ["trained", "refused", "no table", "does not run", "wrong"]
"""`no table`: nothing to compress. `does not run`: the model as its library builds it, without a swap."""


def counts(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, int], dict[str, int]]:
    """Count the models by their worst outcome, and the tries by outcome."""
    models: Counter[str] = Counter()
    tries: Counter[str] = Counter()
    for row in rows:
        outcomes = row["outcomes"]
        for outcome, reasons in outcomes.items():
            tries[outcome] += reasons if isinstance(reasons, int) else sum(map(len, reasons.values()))
        models[max(outcomes, key=OUTCOMES.index)] += 1
    return dict(models), dict(tries)
