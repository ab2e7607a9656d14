"""Pruned against sorting by hand, and against what it promises of the error."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import embcomp
from embcomp import Pruned, Table
from embcomp.methods.pruned import _ones


def fitted(table: torch.Tensor, method: embcomp.Method) -> tuple[torch.Tensor, embcomp.CompressionReport]:
    model = torch.nn.ModuleDict({"t": torch.nn.Embedding.from_pretrained(table.clone(), freeze=False)})
    report = embcomp.compress_(model, method, init="fit")
    return model["t"].materialize().detach(), report


@settings(max_examples=30)
@given(st.integers(1, 90), st.sampled_from([1, 2, 4, 8]), st.floats(0.01, 1), st.booleans(), st.integers(0, 10**6))
def test_the_largest_blocks_stay_as_they_are_and_the_others_are_zero(ids, block, keep, weighed, seed):
    torch.manual_seed(seed)
    table, counts = torch.randn(ids, 8), torch.randint(0, 9, (ids,)) if weighed else None
    vectors, report = fitted(table, Pruned(keep=keep, vectors=table, block=block, counts=counts))
    blocks = table.view(ids * (8 // block), block)
    sizes = blocks.square().sum(1) * (1 if counts is None else counts.repeat_interleave(8 // block))
    number = max(1, int(keep * len(blocks)))
    stay = set(torch.argsort(sizes, descending=True, stable=True)[:number].tolist())
    expected = torch.stack([row if i in stay else torch.zeros(block) for i, row in enumerate(blocks)]).view(ids, 8)
    torch.testing.assert_close(vectors, expected, rtol=1e-6, atol=1e-7)
    groups = -(-ids // 16)
    assert report.served_nbytes == 4 * number * block + 4 * (-(-groups * 16 * (8 // block) // 32) + 2) + 4 * groups


@settings(max_examples=15)
@given(st.integers(2, 60), st.floats(0.05, 1), st.integers(0, 10**6))
def test_rows_stay_whole_or_go_whole(ids, keep, seed):
    torch.manual_seed(seed)
    table = torch.randn(ids, 8)
    vectors, _ = fitted(table, Pruned(keep=keep, vectors=table, block=4, by="row"))
    number = max(1, int(keep * ids))
    stay = table.norm(dim=1).argsort(descending=True)[:number]
    assert sorted(stay.tolist()) == vectors.any(1).nonzero().squeeze(1).tolist()
    torch.testing.assert_close(vectors[stay], table[stay], rtol=1e-6, atol=1e-7)


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=50))
def test_bits_are_counted(numbers):
    assert _ones(torch.tensor(numbers)).tolist() == [number.bit_count() for number in numbers]


def test_masks_stay_in_training_and_what_is_kept_learns():
    torch.manual_seed(0)
    table = torch.randn(200, 16)
    model = torch.nn.ModuleDict({"t": torch.nn.Embedding.from_pretrained(table.clone(), freeze=False)})
    embcomp.compress_(model, Pruned(keep=0.2, vectors=table, block=4), init="warm")
    zeros = model["t"].materialize() == 0
    assert abs(float(zeros.float().mean()) - 0.8) < 1e-3
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(5):
        optimizer.zero_grad()
        (model["t"](torch.arange(200)) - 1).square().sum().backward()
        optimizer.step()
    after = model["t"].materialize().detach()
    assert bool((after[zeros] == 0).all())
    assert float((after[~zeros] - 1).abs().mean()) < float((table[~zeros] - 1).abs().mean())


def test_counts_keep_what_is_read_most():
    torch.manual_seed(1)
    table, counts = torch.randn(500, 16), torch.arange(500, 0, -1).pow(2)
    lost = {}
    for name, given_counts in (("plain", None), ("weighed", counts)):
        vectors, _ = fitted(table, Pruned(keep=0.3, vectors=table, block=2, counts=given_counts))
        lost[name] = float(((vectors - table).square().sum(1) * counts).sum())
    assert lost["weighed"] < 0.75 * lost["plain"]


def test_few_bits_go_around_it():
    torch.manual_seed(2)
    table = torch.randn(1000, 16) * (torch.rand(1000, 4) < 0.25).float().repeat_interleave(4, 1)
    method = embcomp.LowBit(bits=4, of=Pruned(keep=0.25, vectors=table))
    vectors, report = fitted(table, method)
    assert report.served_nbytes < 0.08 * 4 * table.numel()
    assert float((vectors - table).square().sum() / table.square().sum()) < 0.1


def test_a_budget_chooses_what_to_keep():
    table = torch.randn(3000, 16)
    model = torch.nn.ModuleDict({"t": torch.nn.Embedding.from_pretrained(table)})
    method = Pruned.for_budget(model, "12%", vectors=table)
    nbytes = method.sizes([Table("t", 3000, 16)]).nbytes()
    assert 0.118 * 4 * table.numel() < nbytes <= 0.12 * 4 * table.numel()


def test_a_budget_of_several_tables_keeps_small_ones_whole():
    tables = [Table("small", 20, 16), Table("large", 3000, 16)]
    vectors = {table.name: torch.randn(table.num_embeddings, 16) for table in tables}
    method = Pruned.for_budget(tables, "10%", vectors=vectors)
    assert method.keep["small"] == 1
    assert 0.08 < method.keep["large"] < 0.1
    assert 0.099 * 4 * 3020 * 16 < method.sizes(tables).nbytes() <= 0.1 * 4 * 3020 * 16
    assert Pruned.for_budget(tables, "200%", vectors=vectors).keep == {"small": 1, "large": 1}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keep": 0.0}, "keep"),
        ({"keep": 1.5}, "keep"),
        ({"keep": 0.5, "by": "column"}, "by"),
        ({"keep": 0.5, "block": 0}, "block"),
    ],
)
def test_impossible_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Pruned(vectors=torch.randn(4, 8), **settings)


@pytest.mark.parametrize(
    ("vectors", "dim", "settings", "said"),
    [
        (torch.randn(5, 8), 8, {"block": 3}, r"'t'.*block=3 must divide embedding_dim 8"),
        (torch.randn(5, 64), 64, {"block": 1}, r"'t'.*at most 31 blocks"),
        (torch.randn(4, 8), 8, {}, r"'t'.*floats \[5, 8\], got torch.float32 \[4, 8\]"),
        (torch.ones(5, 8, dtype=torch.int64), 8, {}, r"'t'.*got torch.int64"),
        (torch.full((5, 8), float("nan")), 8, {}, r"'t'.*NaN"),
        (torch.randn(5, 8), 8, {"counts": torch.ones(3)}, r"'t'.*counts"),
    ],
)
def test_tables_that_do_not_fit_are_named(vectors, dim, settings, said):
    with pytest.raises(ValueError, match=said):
        Pruned(keep=0.5, vectors=vectors, **settings).plan([Table("t", 5, dim)])
