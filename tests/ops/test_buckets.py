"""Compiled bucket sums, look-ups and signatures against loops and plain torch; gradients against theirs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from embcomp.ops import buckets
from embcomp.ops.signatures import pack, unpack

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True, scope="module")
def compiled() -> None:
    if not buckets.fast(torch.zeros(1)):
        pytest.skip("no compiler")


class Case:
    """Random histories: rows with codes, events that are rows, and what each kind of sum should be, by loops."""

    def __init__(
        self, sizes: list[int], groups: int, tau: int, dim: int, masked: bool, placed: bool, seed: int
    ) -> None:
        self.draw = draw = torch.Generator().manual_seed(seed)
        total = sum(sizes)
        rows = 9 if placed else total  # fewer than events: rows are shared
        self.sizes, self.groups, self.width, self.dim = sizes, groups, 2**tau, dim
        self.values = torch.randn(rows, dim, generator=draw)
        self.codes = torch.randint(self.width, (rows, groups), generator=draw)
        mask = torch.rand(total, generator=draw) < 0.7 if masked else None
        places = torch.randint(rows, (total,), generator=draw) if placed else None
        offsets = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
        self.events = buckets.Histories(pack(self.codes, tau), offsets, groups, tau, mask, places)
        self.counted = [
            (b, t, t if places is None else int(places[t]))
            for b in range(len(sizes))
            for t in range(offsets[b], offsets[b + 1])
            if mask is None or mask[t]
        ]


cases = st.builds(
    Case,
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    groups=st.integers(1, 24),  # of 4 bits: 15 to a word
    tau=st.sampled_from([1, 3, 4]),
    dim=st.sampled_from([1, 7, 8, 16, 32, 128]),
    masked=st.booleans(),
    placed=st.booleans(),
    seed=st.integers(0, 99),
)


@settings(max_examples=15, deadline=None)
@given(case=cases)
def test_sums_and_look_ups_against_a_loop(case):
    shape = (len(case.sizes), case.groups, case.width)
    table, counts = torch.zeros(*shape, case.dim), torch.zeros(shape)
    upstream = torch.randn(table.shape, generator=case.draw)
    gradient = torch.zeros_like(case.values)
    for b, _, row in case.counted:
        for g in range(case.groups):
            table[b, g, case.codes[row, g]] += case.values[row]
            counts[b, g, case.codes[row, g]] += 1
            gradient[row] += upstream[b, g, case.codes[row, g]]
    leaf = case.values.clone().requires_grad_()
    made, held = buckets.scatter(leaf, case.events)
    torch.testing.assert_close(made, table, **CLOSE)
    assert torch.equal(held, counts)
    torch.testing.assert_close(torch.autograd.grad((made * upstream).sum(), leaf)[0], gradient, **CLOSE)
    if case.events.places is None:  # then a row's gradient is what the row reads
        sums = upstream.clone().requires_grad_()
        found = buckets.gather(sums, case.events)
        torch.testing.assert_close(found, gradient, **CLOSE)
        torch.testing.assert_close(torch.autograd.grad((found * case.values).sum(), sums)[0], table, **CLOSE)


@settings(max_examples=15, deadline=None)
@given(case=cases, candidates=st.integers(0, 3))
def test_pairs_against_a_loop(case, candidates):
    asked = torch.randint(case.width, (len(case.sizes), candidates, case.groups), generator=case.draw)
    sums, counts = torch.zeros(*asked.shape, case.dim), torch.zeros(asked.shape)
    upstream, gradient = torch.randn(sums.shape, generator=case.draw), torch.zeros_like(case.values)
    for b, _, row in case.counted:
        agree = (asked[b] == case.codes[row]).float()
        sums[b] += agree.unsqueeze(-1) * case.values[row]
        counts[b] += agree
        gradient[row] += (agree.unsqueeze(-1) * upstream[b]).sum((0, 1))
    leaf = case.values.clone().requires_grad_()
    made, held = buckets.collide(leaf, case.events, pack(asked, case.events.hash_width))
    torch.testing.assert_close(made, sums, **CLOSE)
    assert torch.equal(held, counts)
    torch.testing.assert_close(torch.autograd.grad((made * upstream).sum(), leaf)[0], gradient, **CLOSE)


def test_a_place_that_is_no_row_is_refused():
    events = Case([5], 2, 3, 8, masked=False, placed=True, seed=0).events
    for place in (-1, 9):
        wrong = events._replace(places=torch.tensor([0, 1, place, 2, 3]))
        with pytest.raises(IndexError, match=f"row {place} is out of range, the table has 9 rows"):
            buckets.scatter(torch.zeros(9, 8), wrong)
        with pytest.raises(IndexError, match=f"row {place} is out of range"):
            buckets.collide(torch.zeros(9, 8), wrong, torch.zeros(1, 1, 1, dtype=torch.int64))


def elsewhere(tensor: torch.Tensor) -> torch.Tensor:
    """The same values one float further on in memory: contiguous, as views and NumPy's arrays are, and not aligned."""
    return torch.cat((torch.zeros(1), tensor.flatten()))[1:].view(tensor.shape)


@pytest.mark.parametrize("dim", [7, 8, 16, 32, 64])
def test_memory_need_not_be_aligned(dim):
    case = Case([5, 9], 4, 3, dim, masked=False, placed=False, seed=0)
    asked, draw = torch.randint(2**60, (2, 3, 1)), torch.randn(2, 3, dim)
    sums = buckets.scatter(case.values, case.events)[0]
    weights = torch.randn(2, 4)
    for form, taken in (
        (lambda x: buckets.scatter(x, case.events)[0], case.values),
        (lambda x: buckets.collide(x, case.events, asked)[0], case.values),
        (lambda x: buckets.gather(x, case.events), sums),
        (lambda x: buckets.query(draw, asked, None, x, 3, unit=True), sums),
        (lambda x: buckets.query(draw, asked, None, x, 3, weights=weights), sums),
    ):
        results = []
        for moved in (lambda x: x, elsewhere):
            leaf = moved(taken).requires_grad_()
            out = form(leaf)
            results.append(out)
            if out.requires_grad:
                results.append(torch.autograd.grad(out, leaf, moved(torch.ones_like(out)))[0])
        assert all(map(torch.equal, results[: len(results) // 2], results[len(results) // 2 :]))


def test_unit_rows_are_those_of_torch():
    rows = torch.randn(3, 4, 7)
    rows[1, 2] = 0.0
    results = []
    for form in (lambda x: buckets.unit_rows(x, 0.5), lambda x: 0.5 * normalize(x, dim=-1)):
        leaf = rows.clone().requires_grad_()
        made = form(leaf)
        results.append((made, *torch.autograd.grad((made * torch.arange(7.0)).sum(), leaf)))
    results[1][1][1, 2] = 0.0  # torch's is that of a division by 1e-12
    torch.testing.assert_close(results[0], results[1])


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(0, 20),
    dim=st.sampled_from([1, 5, 32]),
    groups=st.integers(1, 30),
    tau=st.sampled_from([1, 3, 5]),
    seed=st.integers(0, 99),
)
def test_signatures_are_the_signs_of_the_product(n, dim, groups, tau, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(-9, 10, (n, dim), generator=draw).float()  # integers: sums are exact, and some are zero
    matrix = torch.randint(-9, 10, (dim, groups * tau), generator=draw).float()
    expected = buckets.sign_codes(x @ matrix, tau)
    made = buckets.sign_signatures(x, matrix, tau)
    assert torch.equal(unpack(made, groups, tau), expected)
    assert torch.equal(buckets.sign_signatures(x @ matrix, None, tau), made)
    assert torch.equal(made, pack(expected, tau))


def test_a_signature_does_not_depend_on_the_rows_beside_it():
    matrix = torch.randn(24, 48, generator=torch.Generator().manual_seed(0))
    x = torch.randn(45, 24, generator=torch.Generator().manual_seed(1))
    for j in range(45):  # nearly orthogonal to a hyperplane, so that rounding decides
        x[j] -= (x[j] @ matrix[:, j]) / matrix[:, j].square().sum() * matrix[:, j]
    x[3] = float("nan")
    together = buckets.sign_signatures(x, matrix, 3)
    assert torch.equal(torch.cat([buckets.sign_signatures(row, matrix, 3) for row in x.split(1)]), together)
    assert torch.equal(buckets.sign_signatures(x[7:], matrix, 3), together[7:])
    assert together[3] == 0


@settings(max_examples=15, deadline=None)
@given(
    case=cases,
    change=st.sampled_from([None, "unit", "mix"]),
    counted=st.booleans(),
    known=st.booleans(),
    num=st.integers(0, 17),
)
def test_a_query_is_its_parts(case, change, counted, known, num):
    tau, batch = case.events.hash_width, len(case.sizes)
    sums, counts = buckets.scatter(case.values, case.events)
    asked = torch.randn(batch, num, case.dim, generator=case.draw)
    matrix = torch.randn(case.dim, case.groups * tau, generator=case.draw)
    signatures = buckets.sign_signatures(asked, matrix, tau)
    codes = unpack(signatures, case.groups, tau)
    chosen = torch.arange(batch)[:, None, None], torch.arange(case.groups), codes
    weights = torch.randn(batch, tau + 1, generator=case.draw) if change == "mix" else None
    table = sums
    if change == "unit":
        table = normalize(sums, dim=-1) / case.groups
    if weights is not None:
        bits = torch.tensor([[(a ^ b).bit_count() for b in range(case.width)] for a in range(case.width)])
        table = weights[:, bits].unsqueeze(1) @ sums
    found = table[chosen].sum(2)
    if counted:
        found = found / counts[chosen].sum(2, keepdim=True).clamp(min=1)
    counts, known = counts if counted else None, signatures if known else None
    made = buckets.query(asked, known, matrix, sums, tau, counts=counts, unit=change == "unit", weights=weights)
    torch.testing.assert_close(made, found, **CLOSE)
