import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embcomp.ops.packing import (
    bits_for,
    pack,
    packed_words,
    unpack,
    unpack_known,
    unpack_known_reference,
    unpack_reference,
)


@given(st.integers(1, 31), st.integers(0, 70), st.integers(0, 2**32))
def test_what_is_packed_is_read_back(bits: int, n: int, seed: int) -> None:
    values = torch.randint(1 << bits, (n,), generator=torch.Generator().manual_seed(seed))
    words = pack(values, bits)
    stream = sum(value << (i * bits) for i, value in enumerate(values.tolist()))  # the definition
    assert [word % 2**32 for word in words.tolist()] == [stream >> (32 * i) & 0xFFFFFFFF for i in range(len(words))]
    assert words.shape == (packed_words(n, bits),)
    ids = torch.randperm(n)
    for form in (unpack, unpack_reference):
        assert torch.equal(form(words, bits, ids), values[ids])
        assert torch.equal(form(words, bits, ids[::2]), values[ids[::2]])


@given(st.integers(1, 31), st.integers(0, 50), st.integers(0, 2**32))
def test_missing_entries(bits: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values, limit = torch.randint(1 << bits, (n,), generator=generator), (1 << bits) * 2 // 3
    ids = torch.cat([torch.randint(2 * n + 1, (30,), generator=generator), torch.tensor([2**62])])
    expected = [int(values[i]) if i < n and values[i] < limit else -1 for i in ids.tolist()]
    for form in (unpack_known, unpack_known_reference):
        assert form(pack(values, bits), bits, ids, n, limit).tolist() == expected


def test_several_entries_of_an_id() -> None:
    values = torch.randint(1000, (200, 3))
    words, ids = pack(values, 10), torch.tensor([199, 0, 7])
    for form in (unpack, unpack_reference):
        assert torch.equal(form(words, 10, ids, 3), values[ids])
        assert form(words, 10, ids[:0], 3).shape == (0, 3)


def test_entries_beyond_two_billion_bits_into_the_stream() -> None:
    """Bit places exceed int32; only the words that are read need real values."""
    words = torch.zeros(1, dtype=torch.int32).expand(2**28 + 2)
    assert unpack_reference(words, 31, torch.tensor([2**33 // 31 - 10])).tolist() == [0]


def test_bits_that_values_need() -> None:
    assert [bits_for(n) for n in (1, 2, 3, 4, 5, 8, 9, 2**31 - 1)] == [1, 1, 2, 2, 3, 3, 4, 31]


def test_what_does_not_fit_is_refused() -> None:
    for values in ([4], [-1], [0, 7]):
        with pytest.raises(ValueError, match="do not fit 2 bits"):
            pack(torch.tensor(values), 2)
    for bits in (0, 32):
        with pytest.raises(ValueError, match=f"bits must be in .1, 31., got {bits}"):
            pack(torch.tensor([0]), bits)
