"""The expected loss of every option: by rules alone, or from probes of a trained model."""

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Protocol

from embcomp.methods.base import Method
from embcomp.methods.budget import SMALL
from embcomp.methods.full import Full
from embcomp.methods.quotient_remainder import QuotientRemainder, largest_remainder
from embcomp.planner import rules
from embcomp.planner.options import Option
from embcomp.planner.probes import Probes
from embcomp.planner.tables import Held

After = Literal["fresh", "warm", "fit"]
"""The training that follows the choice: from scratch, from a warm start, or none."""

UNTRAINED = 10.0
"""The approximate factor by which an option costs more without training, for options that were not measured."""

DRAWN = 1 / 3
"""How far the measured worth of a table is drawn towards the guess from its size, on a scale of logarithms.

It is measured beside full tables. Where these are compressed, too, a table is worth more of which they say the same: on
Frappe the city says little beside the user, but much beside users that share rows."""

SHARED = 0.2
"""The share of the rows, in quotient and remainder, at which frailty is measured."""

LOST = 0.5
"""The share of its worth that a table usually loses so: .42 and .48 on Frappe, .64 and .68 on MovieLens-1M.

Articles of Globo lose .15, and a tenth of their rows costs nothing after training."""

FRAIL = 0.2, 2.0
"""The bounds of frailty."""


class Estimates(Protocol):
    """An estimate of the loss that options cause."""

    @property
    def worth(self) -> Sequence[float]:
        """The worth of each table to the model."""
        ...

    @property
    def silent(self) -> Collection[int]:
        """The tables that seem to carry no information."""
        ...

    @property
    def late(self) -> bool:
        """True if there is no time left to examine anything."""
        ...

    def loss(self, option: Option) -> float:
        """Return the expected loss of an option, by what is known so far."""
        ...

    def learn(self, option: Option) -> bool:
        """Examine an option closer; return whether its loss changed."""
        ...

    def joint(self, plan: Sequence[Option]) -> float:
        """Return the expected loss of options together."""
        ...


class ByRules:
    """The estimate of level 1, from sizes and counts.

    The worth of a table is guessed as its size. Were it so, the same method and share for all tables would be the best
    plan, so that this plan is not far from it where the guess is wrong. The shares of items and users in the worth that
    is measured with trained models are .83 and .10 on Frappe, .71 and .26 on MovieLens-1M; in the sizes .76 and .18,
    .28 and .46; in the entropies of their ids .29 and .22, .26 and .29.

    Losses are shares of the worth of all tables together.

    Args:
        held: the tables.
        given: the worth of tables, in any unit, by table name.
        rule: the rules for the loss of a method.

    Attributes:
        worth: the worth of each table.
        silent: the tables whose given worth is 0.
    """

    def __init__(
        self,
        held: Sequence[Held],
        given: Mapping[str, float],
        rule: rules.Rule = rules.loss,
    ) -> None:
        self.held, self.rule = held, rule
        information = guessed(held)
        if given:
            middle = sorted(max(0.0, value) for value in given.values())[len(given) // 2]
            information = [max(0.0, given.get(table.name, middle)) for table in held]
            floor = 1e-9 * max([1.0, *information])
            information = [max(floor, value) for value in information]
        self.silent = {i for i, table in enumerate(held) if given.get(table.name, 1.0) <= 0}
        whole = sum(information) or 1.0
        self.worth = [bits / whole for bits in information]
        self._losses: dict[int, tuple[Option, float]] = {}  # with the option, so that no other gets its id

    def loss(self, option: Option) -> float:
        if id(option) not in self._losses:
            tables = [self.held[i].table for i in option.tables]
            loss = self.rule(option.method, tables, sum(self.worth[i] for i in option.tables), None)
            self._losses[id(option)] = option, loss
        return self._losses[id(option)][1]

    def learn(self, option: Option) -> bool:
        return False

    @property
    def late(self) -> bool:
        return False

    def joint(self, plan: Sequence[Option]) -> float:
        return sum(map(self.loss, plan))


class ByProbes:
    """The estimate of level 2: worth and losses are measured on held-out batches with a trained model.

    If training follows, ranks and codes are measured, and rounding and sharing are estimated by `rules`, because
    training changes their loss. If no training follows, every option is measured as it is.

    Options that were not measured yet are assumed to be as good as possible, so that the cheapest plan, once all its
    options are measured, is the best one.

    Args:
        held: the tables.
        probes: the measurements.
        after: the training that follows.
        rule: the rules for the loss of a method.
        guess: a guess of the worth of each table in any unit, towards which that of tables that say something is drawn.

    Attributes:
        worth: the worth of each table.
        silent: the tables whose worth is not above two standard errors.
    """

    def __init__(
        self,
        held: Sequence[Held],
        probes: Probes,
        after: After,
        rule: rules.Rule = rules.loss,
        guess: Sequence[float] | None = None,
    ) -> None:
        self.held, self.probes, self.after, self.rule = held, probes, after, rule
        first = [table.nbytes for table in held] if guess is None else guess
        order = sorted(range(len(held)), key=lambda i: -first[i])
        measured = {i: probes.worth([i]) for i in order if held[i].weight is not None}
        known = [worth[0] for worth in measured.values() if worth is not None]
        self.silent = {i for i, worth in measured.items() if worth is not None and worth[0] <= 2 * worth[1]}
        middle = max(1e-9, sorted(known)[len(known) // 2]) if known else 1.0
        floor = 1e-9 * max([1.0, *known])
        self.worth = [middle if (worth := measured.get(i)) is None else max(floor, worth[0]) for i in range(len(held))]
        self._alone = list(self.worth)
        if guess is not None and after != "fit":
            self._draw(guess)
        self._losses: dict[tuple[tuple[int, ...], int], float] = {}
        self._kept: list[Option] = []  # so that no id of a method is given twice

    def _draw(self, guess: Sequence[float]) -> None:
        """Draw the worth of tables that say something towards a guess, on a scale of logarithms; see `DRAWN`."""
        said = [i for i in range(len(self.held)) if i not in self.silent and guess[i] > 0]
        whole, guessed = sum(self.worth[i] for i in said), sum(guess[i] for i in said)
        for i in said:
            self.worth[i] = self.worth[i] ** (1 - DRAWN) * (whole * guess[i] / guessed) ** DRAWN

    def loss(self, option: Option) -> float:
        key = option.tables, id(option.method)
        if key not in self._losses:
            self._losses[key] = self._rule(option, 0.0 if self._bare(option) is not None else None)
            self._kept.append(option)
        return self._losses[key]

    @property
    def late(self) -> bool:
        return self.probes.late

    def learn(self, option: Option) -> bool:
        before, bare = self.loss(option), self._bare(option)
        if bare is None:
            return False
        rise = self.probes.rise(option.tables, bare)
        if rise is not None:
            expected = max(0.0, rise) if self.after == "fit" else self._rule(option, rise)
        elif self.probes.late:
            expected = self._rule(option, None) * (UNTRAINED if self.after == "fit" else 1)
        else:
            expected = math.inf  # it failed, and is left out
        self._losses[option.tables, id(option.method)] = expected
        return expected != before

    def measurable(self, options: Sequence[Option]) -> int:
        """Return the number of probes that the losses of all these options can take."""
        probes = {(option.tables, id(bare)) for option in options if (bare := self._bare(option)) is not None}
        return len(probes) + (0 if self.after == "fit" else len(self.held))

    def joint(self, plan: Sequence[Option]) -> float:
        """Return the sum of the losses, plus what the measured parts cost together beyond their sum."""
        alone = sum(map(self.loss, plan))
        parts = [(option.tables, bare) for option in plan if (bare := self._bare(option)) is not None]
        rises = [self.probes.rise(tables, bare) for tables, bare in parts]
        if len(parts) < 2 or any(rise is None for rise in rises):
            return alone
        together = self.probes.together(parts)
        if together is None:
            return alone
        beyond = together - sum(rise or 0.0 for rise in rises)
        return alone + (beyond if self.after == "fit" else rules.RECOVERED * beyond)

    def _bare(self, option: Option) -> Method | None:
        """The method that a probe compresses with; None if a probe would not be informative."""
        if isinstance(option.method, Full) or any(self.held[i].weight is None for i in option.tables):
            return None
        if self.after == "fit":
            return option.method
        tables = [self.held[i].table for i in option.tables]
        return rules.anatomy(option.method, tables).bare if rules.measurable(option.method, tables) else None

    def _rule(self, option: Option, probed: float | None) -> float:
        tables = [self.held[i].table for i in option.tables]
        parts = rules.anatomy(option.method, tables)
        frail = self.after != "fit" and parts.sharing < 1 and not isinstance(parts.bare, rules.ALIKE)
        worth = sum(self.worth[i] * (self.frailty.get(i, 1.0) if frail else 1.0) for i in option.tables)
        return self.rule(option.method, tables, worth, probed)

    @functools.cached_property
    def frailty(self) -> dict[int, float]:
        """The share of its worth that each table loses if ids share rows by hashes, divided by what is usual.

        Training regains most of it, but less where more was lost: on Frappe users may lose 1.7 times as much as items,
        and a plan by worth alone gave them too few rows.
        """
        found, (low, high) = {}, FRAIL
        for i, held in enumerate(self.held):
            if i in self.silent or held.kept or (held.table.num_embeddings or 0) <= SMALL or held.weight is None:
                continue
            rows = largest_remainder(held.table, max(1, int(held.table.num_embeddings * SHARED)))  # pyright: ignore
            rise = self.probes.rise((i,), QuotientRemainder(rows=rows))
            if rise is not None:
                found[i] = min(high, max(low, rise / self._alone[i] / LOST))
        return found


def guessed(held: Sequence[Held]) -> list[float]:
    """Return a guess of the worth of tables, in an unknown unit: the numbers of their values."""
    return [float((table.table.num_embeddings or rules.OPEN) * table.table.embedding_dim) for table in held]
