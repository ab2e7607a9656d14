"""SDIM against the paper's formula, its limit, and bad input."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard as scipy_hadamard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import embcomp
from embcomp.sdim import SDIM, Buckets, ItemSignatures
from embcomp.sdim.buckets import segments
from embcomp.sdim.projection import hadamard
from embcomp.sdim.reference import pool_reference
from embcomp.sdim.signatures import pack, unpack

RULES = ["l2", "mean", "kernel"]
every_rule = pytest.mark.parametrize("rule", RULES)


def clustered(batch: int, length: int, dim: int, seed: int = 0, candidates: int = 1):
    """Events around a few directions, candidates near some of them; a mask with holes."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(batch, 4, dim, generator=g)
    which = torch.randint(0, 4, (batch, length), generator=g)
    sequence = centres.gather(1, which[..., None].expand(-1, -1, dim)) + 0.5 * torch.randn(
        batch, length, dim, generator=g
    )
    asked = centres[:, :1] + 0.5 * torch.randn(batch, candidates, dim, generator=g)
    mask = torch.rand(batch, length, generator=g) < 0.8
    return asked, sequence, mask


def codes(sdim: SDIM, vectors: torch.Tensor) -> torch.Tensor:
    """Bits by the definition: sign(R x), tau to a number, the first bit the lowest."""
    bits = (sdim.projection(vectors) > 0).long().unflatten(-1, (sdim.groups, sdim.hash_width))
    return sum(bits[..., i] * 2**i for i in range(sdim.hash_width))


def make(*args, rule="l2", **options) -> SDIM:
    """With weights that tell the distances apart, as training leaves them."""
    sdim = SDIM(*args, rule=rule, **options)
    if rule == "kernel":
        with torch.no_grad():
            sdim.weight.copy_(torch.linspace(8, -1, len(sdim.weight)))
    return sdim


def reference(sdim: SDIM, asked, sequence, mask) -> torch.Tensor:
    weight = sdim.weight if sdim.rule == "kernel" else None
    return pool_reference(codes(sdim, asked), codes(sdim, sequence), sequence, mask, sdim.rule, weight)


def jagged(sequence: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.cat((torch.zeros(1, dtype=torch.int64), mask.sum(1)))
    return sequence[mask], lengths.cumsum(0)


def by_item(sequence: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The same events as places [B, L] in a matrix of vectors, in another order and with rows that nobody reads."""
    vectors = torch.cat((sequence.flatten(0, 1), sequence.new_full((2, sequence.shape[2]), torch.nan)))
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
    return vectors[order], order.argsort()[: len(vectors) - 2].view(sequence.shape[:2])


@settings(max_examples=15)
@given(
    rule=st.sampled_from(RULES),
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


@pytest.mark.parametrize("double", [False, True])  # compiled, and plain torch
def test_a_place_that_is_no_row_is_refused(double):
    sdim, vectors = SDIM(4).to(torch.float64 if double else torch.float32), torch.zeros(3, 4)
    vectors = vectors.double() if double else vectors
    for place in (-1, 3):
        with pytest.raises(IndexError, match="out of range"):
            sdim.encode(vectors, places=torch.tensor([[0, place]]))


@pytest.mark.parametrize("batch", [0, 1])
def test_edges(batch):
    sdim = SDIM(4)
    assert sdim(torch.zeros(batch, 4), torch.zeros(batch, 1, 4)).shape == (batch, 4)
    assert sdim(torch.zeros(batch, 30, 4), torch.zeros(batch, 1, 4)).shape == (batch, 30, 4)
    alone = torch.randn(2, 1, 4)  # L = 1: the candidate that is the event finds it in every group
    torch.testing.assert_close(sdim(alone, alone), torch.nn.functional.normalize(alone, dim=-1))


def test_late_events_of_many_histories_are_found():
    """Offsets beyond 2^24, which float32 cannot tell apart."""
    offsets = torch.tensor([0, 2**24 + 1, 2**24 + 2, 2**24 + 4])
    total = int(offsets[-1])
    assert segments(offsets, total)[-4:].tolist() == [0, 1, 2, 2]
    events, signatures = torch.zeros(total, 1), torch.zeros(total, 1, dtype=torch.int64)
    events[-3:, 0] = torch.tensor([5.0, 7.0, 8.0])
    buckets = SDIM(1, 1, 1).encode(events, offsets=offsets, signatures=signatures)
    assert buckets.sums[:, 0, 0, 0].tolist() == [0, 5, 15]
    assert buckets.counts[1:, 0, 0].tolist() == [1, 2]


@every_rule
@pytest.mark.parametrize("projection", ["dense", "hadamard"])
@pytest.mark.parametrize("num", [1, 20])
def test_nothing_is_read_back_and_no_history_is_copied_for_a_candidate(rule, projection, num):
    """On the meta device, which refuses `nonzero`, `item` and operands of another device: as on a GPU."""
    sdim = SDIM(8, 12, 3, rule=rule, projection=projection).to("meta")
    asked, sequence = (torch.empty(4, n, 8, device="meta", requires_grad=True) for n in (num, 2_000))
    mask, offsets = torch.empty(4, 2_000, dtype=torch.bool, device="meta"), torch.empty(5, device="meta").long()
    places = torch.empty(4, 2_000, device="meta").long()
    jagged = sequence.detach().flatten(0, 1).requires_grad_()
    with Largest() as largest:
        forms = [sdim(asked, sequence, mask), sdim(asked, jagged, offsets=offsets)]
        forms += [sdim(asked, jagged, mask, places=places), sdim.query(asked, sdim.encode(sequence, mask))]
        sum(form.sum() for form in forms).backward()
    assert all(form.shape == asked.shape for form in forms)
    assert sequence.grad is not None
    one_of_each_bucket, copies = sequence.numel() / 8 * sdim.groups * sdim.width, num * sequence.numel()
    assert largest.numel <= one_of_each_bucket
    assert num == 1 or largest.numel < copies


class Largest(TorchDispatchMode):
    """Notes how many elements the largest tensor of all has."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *(leaf.untyped_storage().nbytes() // leaf.element_size() for leaf in made)])
        return out


@pytest.mark.parametrize("projection", ["dense", "hadamard"])
def test_signatures_under_autocast_are_those_of_serving(projection):
    sdim, vectors = SDIM(32, projection=projection), torch.randn(500, 32)
    known = sdim.signatures(vectors)
    plain = lambda: pack(codes(sdim, vectors), 3)  # noqa: E731
    assert torch.equal(plain(), known)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(), known)
        assert torch.equal(sdim.signatures(vectors), known)


@pytest.mark.parametrize("projection", ["dense", "hadamard"])
def test_operands_on_another_device_are_refused(projection):
    """The meta device stands for a GPU, whose addresses compiled code must not read."""
    asked, events, mask = torch.zeros(2, 20, 4), torch.zeros(2, 5, 4), torch.ones(2, 5, dtype=torch.bool)
    here, away = SDIM(4, projection=projection), SDIM(4, projection=projection).to("meta")
    for call in (
        lambda: away(asked, events),
        lambda: away.query(asked, here.encode(events)),
        lambda: here(asked, events, mask.to("meta")),
        lambda: here(asked, events, sequence_signatures=here.signatures(events).to("meta")),
    ):
        with pytest.raises(RuntimeError, match="meta"):
            call()


@every_rule
@pytest.mark.parametrize("num", [1, 20])
def test_long_histories_of_half_precision(rule, num):
    """Sums beyond 256, whose squares float16 does not hold."""
    asked, sequence, mask = clustered(2, 600, 8, candidates=num)
    asked, sequence = asked.half(), sequence.half() + 1.0
    wide = make(8, 12, 3, rule=rule)(asked.float(), sequence.float(), mask)
    assert make(8, 12, 3, rule=rule).encode(sequence.float(), mask).sums.max() > 256
    made = make(8, 12, 3, rule=rule).half()(asked, sequence, mask)
    assert made.dtype == torch.float16
    torch.testing.assert_close(made.float(), wide, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("projection", ["dense", "hadamard"])
def test_hashes_made_without_memory_are_those_of_the_seed(projection):
    vectors = torch.randn(5, 8)
    with torch.device("meta"):
        sdim = SDIM(8, rule="kernel", projection=projection)
    assert sdim.weight.is_meta
    sdim = sdim.to_empty(device="cpu")
    assert torch.equal(sdim.signatures(vectors), SDIM(8, projection=projection).signatures(vectors))
    torch.nn.init.ones_(sdim.weight)
    events = torch.randn(1, 9, 8)
    torch.testing.assert_close(sdim(vectors[:1], events), events.mean(1))


@settings(max_examples=20)
@given(tau=st.integers(1, 16), groups=st.integers(1, 70), seed=st.integers(0, 99))
def test_packing_is_undone(tau, groups, seed):
    given_codes = torch.randint(0, 2**tau, (5, groups), generator=torch.Generator().manual_seed(seed))
    packed = pack(given_codes, tau)
    assert packed.shape[-1] == 1 or groups * tau > 48
    assert torch.equal(unpack(packed, groups, tau), given_codes)


@pytest.mark.parametrize("width", [1, 2, 16, 32, 512])
def test_hadamard_is_that_of_scipy(width):
    x = torch.randn(3, 2, width, dtype=torch.float64)
    torch.testing.assert_close(hadamard(x), x @ torch.tensor(scipy_hadamard(width), dtype=torch.float64))


@pytest.mark.parametrize(("rule", "num"), [("l2", 1), ("mean", 12), ("kernel", 1)])
def test_compiles_and_exports_without_a_graph_break(rule, num):
    sdim = make(8, 12, 3, rule=rule)
    asked, sequence, mask = clustered(3, 7, 8, candidates=num)
    items, places = by_item(sequence)
    items = items.nan_to_num()  # gradients of NaN would not be equal to each other
    compiled = torch.compile(sdim, fullgraph=True, backend="aot_eager", dynamic=False)
    by_place = {"offsets": jagged(sequence, mask)[1], "places": places[mask]}
    for events, options in ((sequence, {"mask": mask}), (items, by_place)):
        results = []
        for form in (sdim, compiled):
            leaf = events.clone().requires_grad_()
            out = form(asked, leaf, **options)
            results.append((out, *torch.autograd.grad(out.square().sum(), leaf)))
        torch.testing.assert_close(results[0], results[1])
    exported = torch.export.export(sdim, (asked, sequence, mask)).module()
    torch.testing.assert_close(exported(asked, sequence, mask), sdim(asked, sequence, mask))
    torch._dynamo.reset()


def test_hashes_are_saved_and_stay():
    asked, sequence, mask = clustered(2, 6, 8)
    sdim, other = SDIM(8, seed=1), SDIM(8, seed=2)
    assert torch.equal(sdim(asked, sequence, mask), SDIM(8, seed=1)(asked, sequence, mask))
    before = sdim.signatures(sequence)
    assert not torch.equal(before, other.signatures(sequence))
    other.load_state_dict(sdim.state_dict())
    assert torch.equal(other.signatures(sequence), before)
    assert torch.equal(copy.deepcopy(sdim).signatures(sequence), before)
    assert torch.equal(sdim.half().signatures(sequence), before)
    assert sdim.projection.matrix.dtype == torch.float32
    with pytest.raises(ValueError, match="hash_width: saved 2, here 3"):
        sdim.load_state_dict(SDIM(8, hash_width=2).state_dict())
    assert list(sdim.parameters()) == []
    assert embcomp.nbytes(SDIM(128, projection="hadamard")) * 50 < embcomp.nbytes(SDIM(128))


@pytest.mark.parametrize("num_hashes", [48, 96])
def test_signatures_come_from_the_item_table(num_hashes):
    method = embcomp.DoubleHash(rows=20)
    items = embcomp.nn.CompressedEmbedding(100, 8, method)
    sdim = SDIM(8, num_hashes)
    table = ItemSignatures(sdim, 100).refresh(sdim, items, chunk=33)
    ids, history = torch.randint(0, 100, (3,)), torch.randint(0, 100, (3, 9))
    hashed = sdim(items(ids), items(history))
    known = {"candidate_signatures": table(ids), "sequence_signatures": table(history)}
    torch.testing.assert_close(sdim(items(ids), items(history), **known), hashed)
    with torch.no_grad():
        items.stores[0].weight.neg_()
    for wrong in (-1, 100):
        with pytest.raises(IndexError):
            table(torch.tensor([wrong]))
    assert not torch.equal(sdim.signatures(items(ids)), table(ids))  # stale until asked
    assert torch.equal(sdim.signatures(items(ids)), table.refresh(sdim, items)(ids))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SDIM(4, 48, 5), "no multiple of hash_width 5: give 45 or 50"),
        (lambda: SDIM(0), "embedding_dim must be at least 1"),
        (lambda: SDIM(4, 17, 17), "at most 16"),
        (lambda: SDIM(4, rule="max"), "rule must be one of l2, mean, kernel"),
        (lambda: SDIM(4, 18, 9, rule="kernel"), "a hash_width of at most 8, got 9"),
        (lambda: SDIM(4, projection="sparse"), "projection must be one of dense, hadamard"),
        (lambda: SDIM(4)(torch.zeros(1, 3), torch.zeros(1, 2, 4)), "candidates have width 3"),
        (lambda: SDIM(4)(torch.zeros(4), torch.zeros(1, 2, 4)), r"candidates have shape \[4\]: give \[B, D\]"),
        (lambda: SDIM(4).query(torch.zeros(1, 1, 1, 4), SDIM(4).encode(torch.zeros(1, 2, 4))), r"give \[B, D\] or"),
        (lambda: SDIM(4)(torch.zeros(1, 4), torch.zeros(1, 2, 5)), "sequence have width 5"),
        (lambda: SDIM(4)(torch.zeros(2, 4), torch.zeros(3, 2, 4)), "2 rows of candidates, 3 histories"),
        (lambda: SDIM(4)(torch.zeros(1, 4), torch.zeros(1, 2, 4), torch.ones(1, 3).bool()), "mask is torch.bool"),
        (lambda: SDIM(4)(torch.zeros(1, 4), torch.zeros(1, 2, 4), torch.ones(1, 2)), "mask is torch.float32"),
        (lambda: SDIM(4)(torch.zeros(1, 4), torch.zeros(2, 4)), r"give \[B, L, D\]"),
        (lambda: SDIM(4)(torch.zeros(1, 4), torch.zeros(2, 4), offsets=torch.tensor([0.0, 2.0])), "must be int64"),
        (lambda: SDIM(4)(torch.zeros(1, 4), torch.zeros(2, 4), offsets=torch.tensor([0, 1])), "offsets end at 1"),
        (lambda: SDIM(4).encode(torch.zeros(2, 4), offsets=torch.tensor([0, 9, 2])), r"never fall, got \[0, 9, 2\]"),
        (lambda: SDIM(4).encode(torch.zeros(2, 4), offsets=torch.tensor([-9, 2])), r"begin at 0 .*got \[-9, 2\]"),
        (lambda: SDIM(4).encode(torch.zeros(0, 4), offsets=torch.zeros(0).long()), r"offsets have shape \[0\]"),
        (
            lambda: SDIM(4)(torch.zeros(1, 4), torch.zeros(3, 4), places=torch.zeros(1, 2).int()),
            r"places are torch.int32 in a sequence \[3, 4\], expected int64",
        ),
        (
            lambda: SDIM(4)(torch.zeros(1, 4), torch.zeros(1, 2, 4), sequence_signatures=torch.zeros(1, 3, 1).long()),
            r"signatures torch.int64 \[1, 3, 1\] do not fit vectors \[1, 2, 4\]: expected torch.int64 \[1, 2, 1\]",
        ),
        (lambda: SDIM(4).encode(torch.zeros(1, 2, 4), signatures=torch.zeros(1, 2, 1).int()), "torch.int32 .*int64"),
        (lambda: SDIM(4).query(torch.zeros(1, 4), SDIM(4, 24).encode(torch.zeros(1, 2, 4))), "same configuration"),
        (
            lambda: SDIM(4).query(torch.zeros(2, 4), Buckets(torch.zeros(1, 16, 8, 4), torch.zeros(1, 16, 8))),
            "2 rows of candidates, 1 histories",
        ),
        (
            lambda: SDIM(4, rule="mean").query(torch.zeros(1, 4), Buckets(torch.zeros(1, 16, 8, 4), torch.zeros(1, 8))),
            r"counts have shape \[1, 8\], expected \[1, 16, 8\]",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
