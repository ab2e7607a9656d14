import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import DataError
from data.ids import Field, hash_strings

MASK = 2**64 - 1


def mix(x: int) -> int:
    """The finaliser of splitmix64, after its increment."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def plain_hash(string: str) -> int:
    total = sum(mix(256 * position + byte) for position, byte in enumerate(string.encode())) & MASK
    return mix(total) >> 1


@given(st.lists(st.text(max_size=12)))
def test_hash_is_as_written(strings):
    assert hash_strings(pl.Series(strings, dtype=pl.String)).to_list() == [plain_hash(s) for s in strings]


def test_mix_is_splitmix64():
    # The first output of splitmix64 with seed 0, as in its reference implementation (Vigna, prng.di.unimi.it).
    assert mix(0) == 0xE220A8397B1DCDAF


def test_hashes_spread():
    strings = pl.Series([f"{i:08x}" for i in range(200_000)])
    hashes = hash_strings(strings).to_numpy()
    assert len(np.unique(hashes)) == len(strings)
    assert hashes.min() >= 0
    buckets = np.bincount(hashes % 1000, minlength=1000)
    assert ((buckets - 200) ** 2 / 200).sum() < 999 + 6 * (2 * 999) ** 0.5  # chi-square, six deviations
    top = np.bincount(hashes >> 53, minlength=1024)
    assert ((top - 195.3) ** 2 / 195.3).sum() < 1023 + 6 * (2 * 1023) ** 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ids": "trian"}, "feature 'f': ids are 'train', 'all', 'raw' or their number, not 'trian'"),
        ({"ids": 0}, "not 0"),
        ({"ids": True}, "not True"),
        ({"ids": 2.5}, r"not 2\.5"),
        ({"min_count": 0}, "min_count must be at least 1, not 0"),
        ({"min_count": "5"}, "min_count must be at least 1, not '5'"),
        ({"ids": "raw", "min_count": 2}, "min_count=2 needs a vocabulary"),
        ({"multi_hot": "yes"}, "multi_hot must be true or false"),
        ({"order": "counts"}, "order is 'value' or 'count', not 'counts'"),
        ({"ids": 7, "order": "count"}, "order='count' needs a vocabulary, not 7"),
    ],
)
def test_bad_fields(options, message):
    with pytest.raises(DataError, match=message):
        Field("f", **options)
