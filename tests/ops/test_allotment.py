"""The allotment of bits against all other choices."""

import itertools
import math

import pytest
import torch

from embcomp.ops.allotment import allot


@pytest.mark.parametrize("mean", [0.4, 1.0, 1.7, 3.0])
def test_no_other_choice_of_as_few_bits_costs_less(mean):
    torch.manual_seed(1)
    costs, sizes = torch.rand(4, 4), [3, 5, 2, 4]
    bits = allot(costs, sizes, mean).tolist()
    used, cost = sum(map(int.__mul__, bits, sizes)), sum(float(costs[g, b]) for g, b in enumerate(bits))
    assert used <= mean * sum(sizes)
    for other in itertools.product(range(4), repeat=4):
        if sum(map(int.__mul__, other, sizes)) <= used:
            assert sum(float(costs[g, b]) for g, b in enumerate(other)) >= cost - 1e-9


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mean", [0.4, 1.2])
def test_where_a_turn_takes_bits_no_other_choice_of_as_few_bits_costs_less(seed, mean):
    draw = torch.Generator().manual_seed(seed)
    costs, sizes, turns = torch.rand(7, 3, generator=draw), [3, 5, 2, 4, 1, 2, 3], [(2, 3.0), (4, 2.0), (1, 9.0)]

    def weighed(bits) -> tuple[float, float, float]:
        """The bits of values, those with turns, and the cost."""
        values, turned, first = sum(map(int.__mul__, bits, sizes)), 0.0, 0
        for number, turn in turns:
            turned += turn * sum(a != b for a, b in itertools.pairwise(bits[first : first + number]))
            first += number
        return values, values + turned, sum(float(costs[g, b]) for g, b in enumerate(bits))

    values, whole, cost = weighed(allot(costs, sizes, mean, turns).tolist())
    assert values <= mean * sum(sizes)
    for other in itertools.product(range(3), repeat=7):
        if weighed(other)[1] <= whole:
            assert weighed(other)[2] >= cost - 1e-9


def test_rows_that_are_not_finite_get_no_bits_but_an_error():
    costs = torch.rand(4, 3)
    costs[2, 1] = math.nan
    with pytest.raises(ValueError, match="bits cannot be allotted: the rows hold NaN or infinite values"):
        allot(costs, [1, 1, 1, 1], 1.0)
