"""An evolutionary search for the widths of several tables that fit a budget together."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from random import Random

PARENTS = 15  # as in the experiments of the paper: the best candidates of all generations so far,
CHANGED = 10  # the candidates of a generation that change one of these,
CROSSED = 10  # those that join two of them,
RATE = 0.1  # and the probability that the width of a table changes

Widths = tuple[int, ...]
"""The width of each table."""


class WidthSearch:
    """A search for the widths of the least loss (OptEmbed, Lyu et al. 2022, arXiv 2208.04482).

    A generation judges 20 candidates, at first random ones. Of the best 15 so far, ten are then changed in some tables,
    and ten pairs are joined: the first tables have the widths of one, the others those of the other. Candidates that
    are too large lose columns in random tables until they fit, and those with room gain columns as long as any fit.

    Args:
        rows: the number of rows of each table.
        choices: the widths that each table may have, ascending.
        room: the most values of all tables together, at least those of the narrowest widths.
        seed: the seed of all random numbers.

    Example:
        >>> search = WidthSearch([10, 20], [(1, 2, 4), (1, 2, 4)], room=80, seed=0)
        >>> search.run(lambda widths: abs(widths[0] - 4) + abs(widths[1] - 2), generations=5)
        (4, 2)
    """

    def __init__(self, rows: Sequence[int], choices: Sequence[Sequence[int]], room: int, seed: int) -> None:
        self.rows, self.choices, self.room, self._draw = rows, choices, room, Random(seed)

    def run(self, loss: Callable[[Widths], float], generations: int) -> Widths:
        """Return the best widths of all that were judged, the first of equally good ones.

        Args:
            loss: the function to minimise; it is asked once for each candidate, and what is not a number is worst.
            generations: the number of generations.
        """
        judged: dict[Widths, float] = {}
        population = [self.fitted(map(self._draw.choice, self.choices)) for _ in range(CHANGED + CROSSED)]
        for _ in range(generations):
            for widths in population:
                if widths not in judged:
                    value = loss(widths)
                    judged[widths] = math.inf if math.isnan(value) else value
            best = sorted(judged, key=judged.__getitem__)[:PARENTS]
            population = list(self._children(best))
        return min(judged, key=judged.__getitem__)

    def _children(self, best: Sequence[Widths]) -> Iterator[Widths]:
        draw = self._draw
        for _ in range(CHANGED):
            parent = draw.choice(best)
            yield self.fitted(
                draw.choice(own) if draw.random() < RATE else width
                for width, own in zip(parent, self.choices, strict=True)
            )
        for _ in range(CROSSED):
            point = draw.randint(1, max(1, len(self.rows) - 1))  # a number of tables
            yield self.fitted(draw.choice(best)[:point] + draw.choice(best)[point:])

    def fitted(self, widths: "Sequence[int] | Iterator[int]") -> Widths:
        """Return widths that fit, and to which no column can be added: random tables lose columns, or gain them."""
        places = [bisect_left(own, width) for own, width in zip(self.choices, widths, strict=True)]
        used = sum(n * own[place] for n, own, place in zip(self.rows, self.choices, places, strict=True))
        while used > self.room:
            table = self._draw.choice([table for table, place in enumerate(places) if place > 0])
            used -= self._step(table, places[table] - 1)
            places[table] -= 1
        while fitting := [
            table
            for table, place in enumerate(places)
            if place + 1 < len(self.choices[table]) and used + self._step(table, place) <= self.room
        ]:
            table = self._draw.choice(fitting)
            used += self._step(table, places[table])
            places[table] += 1
        return tuple(own[place] for own, place in zip(self.choices, places, strict=True))

    def _step(self, table: int, place: int) -> int:
        """Return the values between a choice of a table and the next."""
        return self.rows[table] * (self.choices[table][place + 1] - self.choices[table][place])
