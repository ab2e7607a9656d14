"""Packed rows of different bits against the bits written one after the other."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embcomp.ops.ragged_rows import pack_ragged, ragged_nbytes, read_ragged


@settings(max_examples=60)
@given(st.integers(1, 150), st.integers(1, 9), st.integers(1, 8), st.integers(0, 10**6), st.booleans())
def test_rows_come_back_from_a_plain_stream_of_bits(rows, dim, most, seed, in_order):
    draw = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, most + 1, (rows,), generator=draw)
    bits = bits.sort(descending=True).values if in_order else bits
    values = torch.randint(0, 256, (rows, dim), generator=draw) & ((1 << bits) - 1).unsqueeze(1)
    stream, places = pack_ragged(values, bits, most)
    written = "".join(
        format(value, f"0{n}b")[::-1]
        for n, row in zip(bits.tolist(), values.tolist(), strict=True)
        for value in row
        if n
    )
    read = "".join(format(byte, "08b")[::-1] for byte in stream.squeeze(1).tolist())
    assert read.startswith(written)
    assert set(read[len(written) :]) <= {"0"}
    asked = torch.randint(0, rows, (20,), generator=draw)
    found, own = read_ragged(stream, dim, places, most, asked)
    assert torch.equal(found, values[asked])
    assert torch.equal(own, bits[asked])
    runs = 1 + sum(a != b for a, b in itertools.pairwise(bits.tolist()))
    nbytes = stream.nbytes + sum(part.nbytes for part in places.values())
    assert (
        nbytes
        == ragged_nbytes(rows, dim, int(bits.sum()), most, runs)
        <= ragged_nbytes(rows, dim, int(bits.sum()), most)
    )


def test_rows_in_the_order_of_their_bits_need_no_map():
    bits = torch.tensor([4] * 1000 + [2] * 3000 + [0] * 6000)
    stream, places = pack_ragged(torch.ones(10_000, 8, dtype=torch.int64), bits, most=6)
    assert stream.nbytes >= 1000 * 4 + 3000 * 2
    assert sum(part.nbytes for part in places.values()) == 3 * (4 + 4 + 1)
    assert places["firsts"].tolist() == [0, 1000, 4000]
