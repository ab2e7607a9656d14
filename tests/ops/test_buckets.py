"""Compiled bucket sums and look-ups against a loop, each the other's gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embcomp.ops import buckets


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 70), min_size=1, max_size=4),
    groups=st.integers(1, 5),
    width=st.sampled_from([2, 8]),
    dim=st.sampled_from([1, 7, 8, 32, 128]),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_sums_and_look_ups_against_a_loop(sizes, groups, width, dim, masked, seed):
    draw = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    values = torch.randn(total, dim, generator=draw)
    if not buckets.fast(values):
        pytest.skip("no compiler")
    codes = torch.randint(width, (total, groups), generator=draw)
    mask = torch.rand(total, generator=draw) < 0.7 if masked else None
    offsets = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
    table, counts = torch.zeros(len(sizes), groups, width, dim), torch.zeros(len(sizes), groups, width)
    read = torch.zeros(total, dim)
    rows = [(b, t) for b in range(len(sizes)) for t in range(offsets[b], offsets[b + 1]) if mask is None or mask[t]]
    for b, t in rows:
        for g in range(groups):
            table[b, g, codes[t, g]] += values[t]
            counts[b, g, codes[t, g]] += 1
    upstream = torch.randn(table.shape, generator=draw)
    for b, t in rows:
        read[t] = sum(upstream[b, g, codes[t, g]] for g in range(groups))
    leaf, sums = values.clone().requires_grad_(), upstream.clone().requires_grad_()
    made, held = buckets.scatter(leaf, codes, offsets, width, mask)
    torch.testing.assert_close(made, table, rtol=1e-4, atol=1e-5)
    assert torch.equal(held, counts)
    torch.testing.assert_close(torch.autograd.grad((made * upstream).sum(), leaf)[0], read, rtol=1e-4, atol=1e-5)
    found = buckets.gather(sums, codes, offsets, mask)
    torch.testing.assert_close(found, read, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad((found * values).sum(), sums)[0], table, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hash_width", [1, 2, 3, 4, 7])
def test_codes_are_the_same_in_either_form(hash_width):
    x = torch.randn(3, 5, 4 * hash_width)
    x[0, 0, 0], x[0, 0, 1:] = float("nan"), 0.0
    slow = buckets.sign_codes(x.double(), hash_width)
    assert torch.equal(buckets.sign_codes(x, hash_width), slow)
    assert torch.equal(buckets.sign_codes(x.transpose(0, 1), hash_width), slow.transpose(0, 1))
