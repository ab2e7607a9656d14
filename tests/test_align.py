"""`align_dot_product_`, against the singular value decomposition of the matrix of products."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import embcomp


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.booleans(), st.integers(0, 2**31))
def test_products_stay_and_truncation_is_the_best_there_is(width: int, held: int, weighted: bool, seed: int) -> None:
    torch.manual_seed(seed)
    mixed = torch.randn(min(held, width), width, dtype=torch.float64)  # tables of full rank and below
    users, items = torch.randn(40, len(mixed)).double() @ mixed, torch.randn(25, width).double()
    counts = (torch.rand(40) + 0.1, torch.rand(25) + 0.1) if weighted else (None, None)
    products = users @ items.T
    values = embcomp.align_dot_product_(users, items, counts=counts)
    torch.testing.assert_close(users @ items.T, products, atol=1e-8, rtol=1e-8)
    left, right = (torch.ones(n) if c is None else c for n, c in zip((40, 25), counts, strict=True))
    scale = left.double().sqrt().unsqueeze(1), right.double().sqrt()
    expected = torch.linalg.svdvals(scale[0] * products * scale[1])[:width]
    torch.testing.assert_close(values[: len(expected)], expected, atol=1e-5, rtol=1e-5)
    for rank in range(width):  # Eckart and Young
        error = scale[0] * (products - users[:, :rank] @ items[:, :rank].T) * scale[1]
        torch.testing.assert_close(error.square().sum(), expected[rank:].square().sum(), atol=1e-6, rtol=1e-6)


def test_a_warm_start_of_low_rank_keeps_what_the_products_need() -> None:
    torch.manual_seed(0)
    stretch = torch.tensor([10.0, 10.0, 1.0, 1.0])
    model = nn.ModuleDict({"user": nn.Embedding(60, 4), "item": nn.Embedding(50, 4)})
    with torch.no_grad():  # what is large in one table is small in the other
        model["user"].weight.mul_(stretch)
        model["item"].weight.mul_(stretch.flip(0) / 10 * torch.tensor([1.0, 1.0, 3.0, 3.0]))
    products = (model["user"].weight @ model["item"].weight.T).detach()
    best = torch.linalg.svdvals(products)[2:4].square().sum()
    errors = []
    for aligned in (False, True):
        if aligned:
            embcomp.align_dot_product_(model["user"].weight.data, model["item"].weight.data)
        small = nn.ModuleDict({"user": nn.Embedding(60, 4), "item": nn.Embedding(50, 4)})
        small.load_state_dict(model.state_dict())
        embcomp.compress_(small, embcomp.LowRank(rank=2), init="warm")
        errors.append((small["user"].weight @ small["item"].weight.T - products).square().sum().item())
    assert errors[1] == pytest.approx(best.item(), rel=1e-3)
    assert errors[0] > 2 * errors[1]


def test_what_cannot_be_aligned_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one width.*\[3, 2\] and \[3, 4\]"):
        embcomp.align_dot_product_(torch.ones(3, 2), torch.ones(3, 4))
    users = torch.ones(3, 2)
    with pytest.raises(ValueError, match="NaN"):
        embcomp.align_dot_product_(users, torch.full((3, 2), torch.nan))
    assert torch.equal(users, torch.ones(3, 2))
