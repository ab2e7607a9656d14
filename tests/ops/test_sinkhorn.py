"""Balanced assignments against exact optimal transport, and against what they promise to whoever fits codes."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import embcomp
from embcomp.ops.kmeans import assign
from embcomp.ops.sinkhorn import BATCH, balanced_assign, transport
from embcomp.semantic_ids import ResidualKMeans


@given(st.integers(2, 40), st.integers(2, 10), st.integers(0, 10**6), st.sampled_from([0.003, 0.05, 1.0]))
def test_a_plan_has_equal_marginals(rows, columns, seed, epsilon):
    costs = 2 * torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)).double() - 1
    plan = transport(costs, epsilon, 500).exp()
    torch.testing.assert_close(plan.sum(0), torch.full((columns,), 1 / columns).double())
    if epsilon == 1.0:  # a smooth plan converges soon
        torch.testing.assert_close(plan.sum(1), torch.full((rows,), 1 / rows).double(), atol=1e-6, rtol=1e-4)
    assert torch.isfinite(plan).all()


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_it_costs_about_what_the_exact_assignment_costs(seed):
    """The Hungarian method, with each centroid as often as it may be used."""
    torch.manual_seed(seed)
    each, centroids = 20, torch.randn(8, 3)
    vectors = torch.randn(8 * each, 3) * 0.7 + torch.tensor([1.0, 0, 0])  # few centroids are near
    costs = torch.cdist(vectors, centroids).square()
    rows, places = linear_sum_assignment(np.repeat(costs.numpy(), each, axis=1))
    exact = float(costs[torch.tensor(rows), torch.tensor(places) // each].sum())
    index = balanced_assign(vectors, centroids, epsilon=0.01, iterations=200)
    counts, free = torch.bincount(index, minlength=8), torch.bincount(assign(vectors, centroids)[0], minlength=8)
    assert counts.max() <= 1.4 * each
    assert counts.float().std() < 0.3 * free.float().std()
    assert float(costs[torch.arange(len(vectors)), index].sum()) <= 1.08 * exact


def test_batches_are_balanced_for_themselves():
    torch.manual_seed(0)
    vectors, centroids = torch.randn(2 * BATCH + 7, 4), torch.randn(16, 4)
    counts = torch.bincount(balanced_assign(vectors, centroids), minlength=16)
    assert counts.min() > 0.7 * len(vectors) / 16
    assert counts.max() < 1.3 * len(vectors) / 16


def skewed(rows: int) -> torch.Tensor:
    """Most vectors in one dense region, few in a wide one: k-means spends its codes on the few."""
    torch.manual_seed(1)
    return torch.cat([0.3 * torch.randn(9 * rows // 10, 8), 4 * torch.randn(rows // 10, 8)])[torch.randperm(rows)]


def test_more_items_have_codes_of_their_own():
    content = skewed(2000)
    plain = ResidualKMeans(levels=2, codebook_size=16).fit(content)
    even = ResidualKMeans(levels=2, codebook_size=16, balanced=True).fit(content)
    qualities = [tokenizer.quality(tokenizer.encode(content), content) for tokenizer in (plain, even)]
    assert qualities[1].perplexity[0] > 1.3 * qualities[0].perplexity[0]
    assert len(even.encode(content).unique(dim=0)) > len(plain.encode(content).unique(dim=0))
    assert qualities[1].relative_error > qualities[0].relative_error  # that is the price
    assert "balanced" not in plain.config()  # tokenizers of before keep their version
    assert even.config()["balanced"] is True


def test_books_of_a_trained_table_use_all_their_codes():
    table, shares = skewed(3000), {}
    for balanced in (False, True):
        model = torch.nn.ModuleDict({"t": torch.nn.Embedding.from_pretrained(table, freeze=False)})
        method = embcomp.ProductCodes(parts=2, codes=16, balanced=balanced)
        embcomp.compress_(model, method, init="fit")
        vectors = model["t"].materialize().detach().view(3000, 2, 4)
        counts = [vectors[:, part].unique(dim=0, return_counts=True)[1] for part in range(2)]
        shares[balanced] = max(float(count.max()) / 3000 for count in counts)
    assert shares[True] < 0.7 * shares[False]
