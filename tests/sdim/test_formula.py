"""SDIM against the paper's formula, its gradients and its limit."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embcomp.sdim import SDIM
from embcomp.sdim.buckets import segments
from tests.sdim.sequences import RULES, by_item, clustered, codes, every_rule, jagged, make, reference


@settings(max_examples=15)
@given(
    rule=st.sampled_from(list(RULES)),
    projection=st.sampled_from(["dense", "hadamard"]),
    tau=st.sampled_from([1, 2, 3, 5, 7]),
    groups=st.integers(1, 15),
    sizes=st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(1, 9), st.integers(1, 12)),
    seed=st.integers(0, 99),
)
def test_every_form_equals_the_formula(rule, projection, tau, groups, sizes, seed):
    batch, length, dim, num = sizes
    sdim = make(dim, groups * tau, tau, seed, rule=rule, projection=projection)
    asked, sequence, mask = clustered(batch, length, dim, seed, num)
    expected = reference(sdim, asked, sequence, mask)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(sdim(asked, sequence, mask), expected, **close)
    torch.testing.assert_close(sdim(asked[:, 0], sequence, mask), expected[:, 0], **close)
    buckets = sdim.encode(sequence, mask)
    torch.testing.assert_close(sdim.query(asked, buckets), expected, **close)
    torch.testing.assert_close(sdim.query(asked[:, 0], buckets), expected[:, 0], **close)
    with torch.no_grad():  # as served: learned weights in the same compiled call
        torch.testing.assert_close(sdim.query(asked, buckets), expected, **close)
        torch.testing.assert_close(sdim(asked, sequence, mask), expected, **close)
    values, offsets = jagged(sequence, mask)
    torch.testing.assert_close(sdim(asked, values, offsets=offsets), expected, **close)
    known = {"candidate_signatures": sdim.signatures(asked), "sequence_signatures": sdim.signatures(sequence)}
    torch.testing.assert_close(sdim(asked, sequence, mask, **known), expected, **close)
    items, places = by_item(sequence, seed)
    for form in (sdim, copy.deepcopy(sdim).double()):  # compiled, and plain torch
        wide = {"rtol": 1e-4, "atol": 1e-5, "check_dtype": False}
        vectors = items.to(torch.float64 if form is not sdim else torch.float32)
        torch.testing.assert_close(form(asked.to(vectors), vectors, mask, places=places), expected, **wide)
        one = form(asked[:, 0].to(vectors), vectors, offsets=offsets, places=places[mask])
        torch.testing.assert_close(one, expected[:, 0], **wide)
        known = {"sequence_signatures": form.signatures(vectors), "places": places}
        torch.testing.assert_close(form(asked.to(vectors), vectors, mask, **known), expected, **wide)
    assert (buckets.counts.sum(-1) == mask.sum(1)[:, None]).all()


@every_rule
@pytest.mark.parametrize("num", [1, 20])  # 20 candidates go over the buckets, 1 does not
@pytest.mark.parametrize("form", ["padded", "jagged", "places", "jagged places"])
def test_gradients_equal_those_of_the_formula(rule, num, form):
    sdim = make(6, 12, 3, rule=rule)
    asked, sequence, mask = clustered(3, 10, 6, candidates=num)
    weight = torch.randn_like(asked)
    asked.requires_grad_()

    def gradients(pool, start=sequence):
        leaf = start.clone().requires_grad_()
        return torch.autograd.grad((pool(leaf) * weight).sum(), (leaf, asked), allow_unused=True)

    if form == "padded":
        ours = gradients(lambda s: sdim(asked, s, mask))
    elif form == "jagged":
        ours = gradients(lambda s: sdim(asked, s[mask], offsets=jagged(s, mask)[1]))
    else:  # three items and their places: the gradient of an item is that of all its events
        items, places = sequence[0, :3], torch.arange(30).view(3, 10) % 3
        sequence = items[places]
        if form == "places":
            ours = gradients(lambda i: sdim(asked, i, mask, places=places), items)
        else:
            ours = gradients(lambda i: sdim(asked, i, offsets=jagged(sequence, mask)[1], places=places[mask]), items)
        formula = gradients(lambda i: reference(sdim, asked, i[places], mask), items)
        torch.testing.assert_close(ours[0], formula[0], rtol=1e-4, atol=1e-5)
        return
    formula = gradients(lambda s: reference(sdim, asked, s, mask))
    torch.testing.assert_close(ours[0], formula[0], rtol=1e-4, atol=1e-6)
    assert ours[1] is None  # no gradient through signs, as in the formula
    assert formula[1] is None


@every_rule
def test_expected_reaches_items_and_candidates(rule):
    asked, sequence, mask = (t.double() if t.is_floating_point() else t for t in clustered(2, 5, 4, candidates=3))
    sdim = make(4, 12, 3, rule=rule).double()
    leaves = asked.requires_grad_(), sequence.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, s: sdim(a, s, mask, expected=True), leaves)
    values, offsets = jagged(sequence, mask)
    torch.testing.assert_close(
        sdim(asked, values, offsets=offsets, expected=True), sdim(asked, sequence, mask, expected=True)
    )


def test_expected_is_the_written_sum():
    asked, sequence, mask = clustered(1, 6, 5)
    cosine = torch.nn.functional.cosine_similarity(asked[0, 0], sequence[0], dim=-1)
    p = (1 - cosine.arccos() / torch.pi) ** 2 * mask[0]
    total = (p[:, None] * sequence[0]).sum(0)
    torch.testing.assert_close(SDIM(5, 4, 2, rule="mean")(asked, sequence, mask, expected=True)[0, 0], total / p.sum())
    torch.testing.assert_close(SDIM(5, 4, 2)(asked, sequence, mask, expected=True)[0, 0], total / total.norm())


@pytest.mark.parametrize("projection", ["dense", "hadamard"])
@pytest.mark.parametrize("tau", [1, 3])
def test_collision_probability_is_that_of_the_formula(projection, tau):
    """9 600 groups: the standard error of a share is at most .0051."""
    dim, first = 32, torch.zeros(32)
    first[0] = 1
    groups = 9_600 // 20
    for cosine in (-0.5, 0.0, 0.6, 0.95):
        second = torch.zeros(dim)
        second[0], second[1] = cosine, (1 - cosine**2) ** 0.5
        turn = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(1)))[0]
        share = []
        for seed in range(20):
            sdim = SDIM(dim, groups * tau, tau, seed, projection=projection)
            a, b = codes(sdim, turn @ first), codes(sdim, turn @ second)
            share.append((a == b).float().mean())
        expected = sdim.collision_probability(torch.tensor(cosine))
        assert abs(torch.stack(share).mean() - expected) < 0.016


@every_rule
def test_more_hashes_come_closer_to_the_expectation(rule):
    """The bounds that the project set for clustered data."""
    asked, sequence, mask = clustered(8, 256, 32, candidates=16)
    for num_hashes, bound in ((12, 0.83), (24, 0.90), (48, 0.95), (96, 0.97), (192, 0.99)):
        sdim = make(32, num_hashes, 3, rule=rule)
        limit = sdim(asked, sequence, mask, expected=True)
        cosine = torch.nn.functional.cosine_similarity(sdim(asked, sequence, mask), limit, dim=-1)
        assert cosine.mean() >= bound, num_hashes


@every_rule
@pytest.mark.parametrize("num", [1, 20])
def test_a_history_without_events_is_zero(rule, num):
    sdim = make(4, rule=rule)
    asked, sequence, mask = clustered(3, 5, 4, candidates=num)
    mask[1] = False
    sequence[~mask] = float("nan")  # what lies under the mask is not read
    sequence.requires_grad_()
    for expected in (False, True):
        pooled = sdim(asked, sequence, mask, expected=expected)
        assert pooled.isfinite().all()
        assert not pooled[1].any()
        (gradient,) = torch.autograd.grad(pooled.sum(), sequence)
        assert gradient.isfinite().all()
        assert not gradient[~mask].any()


def test_the_kernel_begins_as_the_average_and_learns():
    asked, sequence, mask = clustered(3, 9, 6, candidates=5)
    sdim = SDIM(6, 12, 3, rule="kernel")
    pooled = sdim(asked, sequence, mask)
    mean = (sequence * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(pooled, mean.unsqueeze(1).expand_as(pooled))
    upstream = torch.randn_like(pooled)
    (ours,) = torch.autograd.grad((pooled * upstream).sum(), sdim.weight)
    (formula,) = torch.autograd.grad((reference(sdim, asked, sequence, mask) * upstream).sum(), sdim.weight)
    torch.testing.assert_close(ours, formula, rtol=1e-4, atol=1e-5)
    (limit,) = torch.autograd.grad((sdim(asked, sequence, mask, expected=True) * upstream).sum(), sdim.weight)
    assert limit.isfinite().all()


def test_offsets_that_are_strided_are_read_as_others():
    offsets = torch.tensor([0, 9, 2, 9, 2, 9, 7, 9])[::2]
    assert segments(offsets, 7).tolist() == [0, 0, 2, 2, 2, 2, 2]
