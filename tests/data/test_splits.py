import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import DataError
from data.splits import SPLIT, with_split


def split(number: int, how: str, seed: int = 0) -> list[int]:
    return with_split(pl.LazyFrame({"x": range(number)}), number, how, seed).collect()[SPLIT].to_list()


@given(st.integers(1, 2000))
def test_shares(number):
    by_time = split(number, "time")
    assert by_time == sorted(by_time)
    assert sorted(split(number, "random")) == by_time
    train, valid = by_time.count(0), by_time.count(1)
    assert train == int(0.8 * number)
    assert train + valid == int(0.9 * number)


def test_random_by_seed():
    assert split(1000, "random", 1) == split(1000, "random", 1) != split(1000, "random", 2)


def test_bad_options():
    with pytest.raises(DataError, match="split must be 'random' or 'time', not 'user'"):
        split(10, "user")
    with pytest.raises(DataError, match="seed must be at least 0, not -2"):
        split(10, "random", -2)
