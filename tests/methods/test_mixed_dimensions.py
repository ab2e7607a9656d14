"""MixedDimensions against the formula of its paper, a loop over ids, and the best approximation of low rank."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import embcomp
from embcomp import MixedDimensions, Table


@given(st.integers(50, 10**6), st.floats(1, 500), st.floats(0, 1), st.sampled_from([1, 2, 4]))
def test_a_table_without_counts_has_the_width_of_its_cardinality(ids, base, alpha, multiple):
    (store,) = MixedDimensions(base=base, alpha=alpha, multiple=multiple).sizes([Table("t", ids, 16)]).stores.values()
    wanted = base * (1 / ids) ** alpha
    narrow = min(16, max(multiple, multiple * round(wanted / multiple)))
    saves = 4 * ids * narrow + 4 * narrow * 16 < 4 * ids * 16
    assert (store.rows, store.dim) == (ids, narrow if saves else 16)


counts_of_ids = st.lists(st.integers(0, 1000), min_size=30, max_size=200).filter(any)


@settings(max_examples=30)
@given(counts_of_ids, st.integers(1, 5), st.floats(0, 2), st.randoms(use_true_random=False))
def test_an_id_reads_the_row_of_its_group_and_its_matrix(counts, groups, alpha, random):
    frequency = torch.tensor(counts)
    random.shuffle(counts)
    method = MixedDimensions(base=40, alpha=alpha, groups=groups, counts=frequency)
    emb = embcomp.nn.CompressedEmbedding(len(counts), 8, method)
    widths = [store.weight.shape[1] for store in emb.stores]
    assert widths == sorted(widths, reverse=True)  # the frequent ids are in the wide groups
    assert len(set(widths)) == len(widths)
    listed = {int(i): int(g) for i, g in zip(emb.encoder.listed, emb.encoder.group, strict=True)}
    matrices, seen = iter(emb.combiner.matrices), []
    maps = [torch.eye(8) if width == 8 else next(matrices) for width in widths]
    by_group: dict[int, list[int]] = {}
    for i in range(len(counts)):
        by_group.setdefault(listed.get(i, len(widths) - 1), []).append(i)
    least = float("inf")
    for group in range(len(widths)):
        ids = by_group[group]
        assert len(ids) == len(emb.stores[group].weight)
        assert max(int(frequency[i]) for i in ids) <= least
        least = min(int(frequency[i]) for i in ids)
        seen += [(i, emb.stores[group].weight[place] @ maps[group]) for place, i in enumerate(ids)]
    ids, vectors = zip(*seen, strict=True)
    torch.testing.assert_close(emb(torch.tensor(ids)), torch.stack(vectors))


def test_groups_have_equal_shares_of_the_counts():
    counts = torch.arange(2000, 0, -1).double().pow(-1)  # Zipf, the most frequent id last
    emb = embcomp.nn.CompressedEmbedding(2000, 32, MixedDimensions(base=80, alpha=0.4, groups=4, counts=counts))
    shares = [counts[emb.encoder.listed[emb.encoder.group == g].long()].sum() / counts.sum() for g in range(3)]
    assert len(emb.stores) == 4
    assert all(abs(float(share) - 0.25) < 0.13 for share in shares)  # the most frequent id alone is an eighth
    assert 1999 in emb.encoder.listed.tolist()


def test_a_fit_of_one_group_is_the_closest_table_of_its_rank():
    torch.manual_seed(3)
    table = torch.randn(300, 8) * torch.tensor([5.0, 3, 2, 1, 0.5, 0.2, 0.1, 0.1])
    model = torch.nn.ModuleDict({"t": torch.nn.Embedding.from_pretrained(table, freeze=False)})
    embcomp.compress_(model, MixedDimensions(base=3, alpha=0.0), init="warm")
    lost = (model["t"].materialize() - table).square().sum()
    closest = torch.linalg.svdvals(table)[3:].square().sum()
    torch.testing.assert_close(lost, closest, rtol=1e-3, atol=0)


def test_frequent_ids_keep_what_a_single_width_would_lose():
    torch.manual_seed(4)
    table, counts = torch.randn(1000, 16), torch.arange(1000, 0, -1).double().pow(2)
    lost = {}
    for groups in (1, 4):
        model = torch.nn.ModuleDict({"t": torch.nn.Embedding.from_pretrained(table, freeze=False)})
        method = MixedDimensions.for_budget(model, "30%", alpha=2.0 if groups > 1 else 0, groups=groups, counts=counts)
        assert embcomp.compress_(model, method, init="warm").served_nbytes <= 0.3 * 4 * table.numel()
        error = (model["t"].materialize().detach() - table).square().sum(1).double()
        lost[groups] = float((error * counts).sum() / counts.sum())
    assert lost[4] < 0.8 * lost[1]


def test_fresh_vectors_are_spread_as_the_table_replaced():
    model = torch.nn.ModuleDict({"t": torch.nn.Embedding(3000, 32)})
    torch.nn.init.normal_(model["t"].weight, mean=0.02, std=0.01)
    counts = torch.arange(3000).double()
    embcomp.compress_(model, MixedDimensions(base=3000, alpha=0.8, groups=3, counts=counts))
    vectors = model["t"](torch.arange(3000)).detach()
    assert abs(float(vectors.mean()) - 0.02) < 2e-3
    assert abs(float(vectors.std()) - 0.01) < 2e-3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"base": 0}, "base"),
        ({"base": float("nan")}, "base"),
        ({"base": 8, "alpha": -1}, "alpha"),
        ({"base": 8, "groups": 2}, "groups=2 needs the counts"),
        ({"base": 8, "groups": 0, "counts": torch.ones(5)}, "groups"),
    ],
)
def test_impossible_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        MixedDimensions(**settings)


def test_tables_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"table 't'.*multiple=8 is above its embedding_dim 4"):
        MixedDimensions(base=8, multiple=8).sizes([Table("t", 9, 4)])
    with pytest.raises(ValueError, match="'t'"):
        MixedDimensions(base=8).sizes([Table("t", None, 4)])
    with pytest.raises(ValueError, match=r"'t'.*counts"):
        MixedDimensions(base=8, groups=2, counts=torch.ones(3)).sizes([Table("t", 9, 4)])
