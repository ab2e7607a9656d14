"""BitCipher against all codes in the order of their set bits, one after the other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import embcomp
from embcomp import BitCipher, Table
from embcomp.methods.bit_cipher import levels, set_bits


def codes(ids: int, bits: int) -> list[list[int]]:
    """The set bits of the first codes: with few set bits first, and of equally many the smaller number."""
    numbers = sorted(range(1, 2**bits), key=lambda code: (code.bit_count(), code))[:ids]
    return [[bit for bit in range(bits) if code >> bit & 1] for code in numbers]


@settings(max_examples=60)
@given(st.integers(1, 10), st.data())
def test_codes_are_those_of_the_list(bits, data):
    ids = data.draw(st.integers(1, 2**bits - 1))
    expected, found = codes(ids, bits), levels(ids, bits)
    assert found is not None
    places, number = set_bits(torch.arange(ids), bits, found.starts)
    assert [row[:k].tolist() for row, k in zip(places, number, strict=True)] == expected
    assert found.most == len(expected[-1])
    assert found.typical == max(1, round(sum(map(len, expected)) / ids))
    assert levels(2**bits, bits) is None


def test_many_rows_and_many_ids():
    """With 2000 rows, rank 2000 is the first pair, and the last pair is followed by the first triple."""
    found = levels(2_100_000, 2000)
    assert found is not None
    assert found.most == 3
    ranks = torch.tensor([1999, 2000, 2000 + 1999 * 1000 - 1, 2000 + 1999 * 1000])
    places, number = set_bits(ranks, 2000, found.starts)
    assert number.tolist() == [1, 2, 2, 3]
    assert places.tolist() == [[1999, 0, 0], [0, 1, 0], [1998, 1999, 0], [0, 1, 2]]


@settings(max_examples=15)
@given(st.integers(1, 60), st.integers(6, 9), st.integers(0, 10**6))
def test_a_vector_is_the_scaled_sum_of_the_rows_of_its_rank(ids, bits, seed):
    torch.manual_seed(seed)
    counts = torch.randint(0, 5, (ids,))
    emb = embcomp.nn.CompressedEmbedding(ids, 4, BitCipher(rows=bits, counts=counts))
    order = sorted(range(ids), key=lambda id: (-int(counts[id]), id))
    rows, expected = emb.stores[0].weight.detach(), torch.empty(ids, 4)
    typical = max(1, round(sum(map(len, codes(ids, bits))) / ids))
    for id, code in zip(order, codes(ids, bits), strict=True):
        expected[id] = (typical / len(code)) ** 0.5 * rows[code].sum(0)
    torch.testing.assert_close(emb.materialize().detach(), expected)


def test_bytes_are_rows_and_the_ranks():
    counts = torch.arange(1000)
    method = BitCipher(rows=32, counts=counts)
    assert method.sizes([Table("t", 1000, 16)]).nbytes() == 4 * 32 * 16 + 4 * (-(-1000 * 10 // 32) + 2)
    assert BitCipher(rows=32).sizes([Table("t", 1000, 16)]).nbytes() == 4 * 32 * 16
    large, small = Table("a", 100_000, 16), Table("b", 9, 16)
    method = BitCipher.for_budget([large, small], "1%")
    assert method.sizes([large, small]).nbytes() == pytest.approx(0.01 * 64 * 100_009, rel=0.01)
    assert BitCipher.for_budget([large, small], 64 * (17 + 4)).rows == {
        "a": 17,
        "b": 4,
    }  # the fewest bits of as many codes


def test_vectors_of_frequent_and_rare_ids_start_equally_large():
    torch.manual_seed(0)
    emb = embcomp.nn.CompressedEmbedding(5000, 256, BitCipher(rows=20))
    number = emb.encoder(torch.arange(5000))[0].weights.gt(0).sum(1)
    sizes = emb.materialize().detach().square().mean(1)
    for k in range(1, 5):
        assert float(sizes[number == k].mean()) == pytest.approx(float(sizes.mean()), rel=0.15)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rows": 0}, "rows"),
        ({"rows": 5}, r"table 't': rows=5 gives 31 codes for 32 ids; take at least rows=6"),
        ({"rows": {"t": 4}}, r"table 't': rows=4 gives 15 codes"),
        ({"rows": {"u": 9}}, "names no table 't'"),
        ({"rows": 9, "counts": torch.ones(31)}, r"table 't': counts must have shape \[32\]"),
        ({"rows": 9, "counts": -torch.ones(32)}, r"table 't': counts must not be negative"),
    ],
)
def test_impossible_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        BitCipher(**settings).plan([Table("t", 32, 8)])
