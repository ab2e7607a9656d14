"""SDIM as a module: edges, devices and dtypes, hashes, compiled programs, item tables, bad input."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard as scipy_hadamard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import embcomp
from embcomp.ops.signatures import pack, unpack
from embcomp.sdim import SDIM, Buckets, ItemSignatures
from embcomp.sdim.buckets import segments
from embcomp.sdim.projection import hadamard
from tests.sdim.sequences import by_item, clustered, codes, every_rule, jagged, make


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
        with pytest.raises((RuntimeError, ValueError), match="meta"):
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
        (lambda: SDIM(4, 48, 5), "not a multiple of hash_width=5: give 45 or 50"),
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
