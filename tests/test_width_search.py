"""`WidthSearch` against trying all widths, and its children against their parents."""

import itertools

import pytest

from embcomp.schedule import width_search
from embcomp.schedule.width_search import WidthSearch

ROWS, CHOICES = (30, 50, 80, 7), ((1, 2, 4, 8), (1, 3, 8), (1, 2, 8), (1, 8))


def size(widths):
    return sum(n * width for n, width in zip(ROWS, widths, strict=True))


@pytest.mark.parametrize("room", [200, 333, 500, 900, 5000])
def test_candidates_fit_and_no_column_more_does(room):
    search = WidthSearch(ROWS, CHOICES, room, seed=0)
    for widths in itertools.product(*CHOICES):
        fitted = search.fitted(widths)
        assert size(fitted) <= room
        for table, own in enumerate(CHOICES):
            place = own.index(fitted[table])
            if place + 1 < len(own):
                wider = [*fitted[:table], own[place + 1], *fitted[table + 1 :]]
                assert size(wider) > room
        if size(widths) <= room:  # then only columns are added
            assert all(mine >= theirs for mine, theirs in zip(fitted, widths, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_the_best_widths_that_fit_are_found(seed):
    def loss(widths):
        return sum((seed + 1 + 3 * n) / width for n, width in enumerate(widths))

    fitting = [widths for widths in itertools.product(*CHOICES) if size(widths) <= 600]
    asked = []
    found = WidthSearch(ROWS, CHOICES, 600, seed).run(lambda widths: asked.append(widths) or loss(widths), 30)
    assert found == min(fitting, key=loss)
    assert len(asked) == len(set(asked))


class Free(WidthSearch):
    """A search without a budget."""

    def fitted(self, widths):
        return tuple(widths)


def generations(monkeypatch, **numbers):
    """The candidates of five generations, each with all that were judged before it."""
    for name, value in numbers.items():
        monkeypatch.setattr(width_search, name, value)
    rows, choices, asked = (1,) * 6, (tuple(range(1, 65)),) * 6, []
    Free(rows, choices, 0, seed=0).run(lambda widths: asked.append(widths) or -sum(widths), 5)
    first = numbers["CHANGED"] + numbers["CROSSED"]
    assert len(asked) > first
    return [(asked[:number], asked[number]) for number in range(first, len(asked))]


def test_crossed_candidates_join_the_first_tables_of_one_and_the_last_of_another(monkeypatch):
    points = set()
    for before, child in generations(monkeypatch, CHANGED=0, CROSSED=20):
        parents = set(itertools.product(before, before))
        found = {point for a, b in parents for point in range(1, 6) if a[:point] + b[point:] == child}
        assert found
        points |= found
    assert points == {1, 2, 3, 4, 5}  # of tables, not of columns


def test_changed_candidates_leave_their_parents_as_they_are(monkeypatch):
    changed = []
    for before, child in generations(monkeypatch, CHANGED=20, CROSSED=0):
        best = sorted(before, key=lambda widths: -sum(widths))[: width_search.PARENTS]
        changed.append(min(sum(x != y for x, y in zip(child, parent, strict=True)) for parent in best))
    assert 1 <= sum(changed) / len(changed) < 2.5  # of six tables, each with probability 0.1


def test_what_is_not_a_number_is_worst():
    search = WidthSearch((1, 1), ((1, 2), (1, 2)), 3, seed=0)
    assert search.run(lambda widths: float("nan") if widths == (1, 2) else 1.0, 2) == (2, 1)
