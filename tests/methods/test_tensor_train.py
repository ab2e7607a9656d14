"""TensorTrain: vectors by hand, the moments of a fresh train, TT-SVD against its error bound and a full SVD."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import embcomp
from embcomp import LowBit, Table, TensorTrain
from embcomp.methods.tensor_train import Shape, cube, factors, tensor_train
from embcomp.nn import CompressedEmbedding


def by_hand(cores: list[torch.Tensor], shape: Shape) -> torch.Tensor:
    """The table, by one einsum over all cores."""
    (n1, n2, n3), (d1, d2, d3), rank = shape.ids, shape.widths, shape.rank
    a = cores[0].view(n1, d1, rank)
    b = cores[1].view(n2, rank, d2, rank)
    c = cores[2].view(n3, rank, d3)
    return torch.einsum("iar,jrbs,ksc->ijkabc", a, b, c).reshape(n1 * n2 * n3, d1 * d2 * d3)


def test_vectors_are_products_of_slices() -> None:
    module = CompressedEmbedding(50, 12, TensorTrain(rank=3))
    shape = Shape((4, 4, 4), (2, 2, 3), 3)
    assert module.combiner.shape == shape
    table = by_hand([store.weight for store in module.stores], shape)
    torch.testing.assert_close(module.materialize(), table[:50])
    given = CompressedEmbedding(50, 12, TensorTrain(rank=2, ids=[2, 5, 5], widths=[3, 1, 4]))
    table = by_hand([store.weight for store in given.stores], Shape((2, 5, 5), (3, 1, 4), 2))
    torch.testing.assert_close(given.materialize(), table)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.02), (0.3, 0.05), (-0.02, 0.05), (1.0, 0.001)])
@pytest.mark.parametrize("rank", [1, 8, 32])
def test_fresh_vectors_have_the_moments_of_the_table_replaced(mean: float, std: float, rank: int) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Embedding(30_000, 64)})
    nn.init.normal_(model["a"].weight, mean, std)
    embcomp.compress_(model, {"a": TensorTrain(rank=rank)})
    for _ in range(2):
        weight = model["a"].weight.detach()
        assert float(weight.std()) == pytest.approx(std, rel=0.12)
        assert float(weight.mean()) == pytest.approx(mean, abs=0.15 * std + 1e-3 * abs(mean))
        model["a"].reset_parameters()


@given(st.integers(1, 10**10))
def test_ids_are_covered_by_three_factors_near_their_cube_root(number: int) -> None:
    n1, n2, n3 = cube(number)
    assert n1 * n2 * n3 >= number > n1 * (n2 - 1) * n3
    assert n1 == n3 >= n2
    assert (n1 - 1) ** 3 < number


@given(st.integers(1, 600))
def test_widths_are_split_in_three(width: int) -> None:
    found = factors(width)
    assert math.prod(found) == width
    assert list(found) == sorted(found)


def test_the_decomposition_keeps_within_the_bound_of_its_singular_values() -> None:
    torch.manual_seed(1)
    shape = Shape((5, 4, 6), (2, 2, 3), 4)
    table = torch.randn(120, 12)
    cores = tensor_train(table, shape)
    assert [tuple(core.shape) for core in cores] == list(shape.cores)
    lost = float((by_hand(cores, shape) - table).norm())
    whole = table.view(5, 4, 6, 2, 2, 3).permute(0, 3, 1, 4, 2, 5)
    unfolded = whole.reshape(10, -1), whole.reshape(10 * 8, -1)
    left_out = [float(torch.linalg.svdvals(matrix)[4:].square().sum()) for matrix in unfolded]
    assert max(left_out) ** 0.5 <= lost + 1e-4 <= sum(left_out) ** 0.5 + 1e-3


def test_a_table_of_that_rank_comes_back_whole() -> None:
    torch.manual_seed(2)
    shape = Shape((5, 4, 5), (2, 2, 2), 3)
    trained = by_hand([torch.randn(rows, columns) for rows, columns in shape.cores], shape)[:95]
    for init in ("warm", "fit"):
        model = nn.ModuleDict({"a": nn.Embedding.from_pretrained(trained.clone(), freeze=False)})
        with torch.no_grad():  # ids beyond the table count as zeros in the decomposition, not in the fit
            embcomp.compress_(model, {"a": TensorTrain(rank=3, ids=[5, 4, 5])}, init=init)
        lost = (model["a"].materialize() - trained).square().sum() / trained.square().sum()
        assert float(lost.detach()) < 1e-3


def test_a_warm_start_is_at_least_as_close_as_the_decomposition() -> None:
    torch.manual_seed(3)
    trained = torch.randn(343, 3) @ torch.randn(3, 8) + 0.2 * torch.randn(343, 8)
    shape = Shape((7, 7, 7), (2, 2, 2), 5)
    start = float((by_hand(tensor_train(trained, shape), shape) - trained).square().sum())
    model = nn.ModuleDict({"a": nn.Embedding.from_pretrained(trained.clone(), freeze=False)})
    embcomp.compress_(model, {"a": TensorTrain(rank=5)}, init="warm")
    assert float((model["a"].materialize() - trained).square().sum().detach()) <= start


@pytest.mark.parametrize("method", [TensorTrain(rank=3), embcomp.DeepHash(width=8, hashes=6)], ids=["train", "network"])
def test_large_batches_compute_each_id_once(method: embcomp.Method) -> None:
    """The vectors and gradients are those of ids that are looked up a few at a time."""
    torch.manual_seed(4)
    module = CompressedEmbedding(300, 12, method, padding_idx=5)
    ids, factors = torch.randint(300, (40, 30)), torch.randn(40, 30, 12)
    whole = module(ids)
    (whole * factors).sum().backward()
    found = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    parts = torch.cat([module(some) for some in ids.split(10)])
    torch.testing.assert_close(whole, parts)
    (parts * factors).sum().backward()
    for mine, parameter in zip(found, module.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-4)
    with pytest.raises(IndexError, match="id 300"):
        module(torch.full((900,), 300))


def test_budgets_and_bytes() -> None:
    tables = [Table("a", 100_000, 32), Table("b", 3, 16)]
    method = TensorTrain.for_budget(tables, 200_000)
    again = TensorTrain(rank=method.rank + 1, small="cap")
    assert method.sizes(tables).nbytes() <= 200_000 < again.sizes(tables).nbytes()
    assert TensorTrain(rank=4).sizes(tables[:1]).nbytes() == 4 * (47 * 2 * 4 + 46 * 4 * 4 * 4 + 47 * 4 * 4)
    assert CompressedEmbedding(100, 16, LowBit(bits=4, of=TensorTrain(rank=4)))(torch.tensor([3])).shape == (1, 16)


def test_impossible_settings_are_refused_by_name() -> None:
    table = [Table("a", 1000, 16)]
    for method, said in (
        (TensorTrain(rank=2, ids=(9, 9, 9)), r"table 'a': ids=\(9, 9, 9\) cover 729 ids, but it has 1000"),
        (TensorTrain(rank=2, widths=(2, 2, 5)), r"table 'a': widths=\(2, 2, 5\) make 20 columns, but.* is 16"),
        (TensorTrain(rank=21), r"table 'a': rank=21 is above 20"),
    ):
        with pytest.raises(ValueError, match=said):
            method.plan(table)
        with pytest.raises(ValueError, match=said):
            method.sizes(table)
    with pytest.raises(ValueError, match="TensorTrain: ids must be three positive integers"):
        TensorTrain(rank=2, ids=(9, 0, 9))
    with pytest.raises(ValueError, match="rank"):
        TensorTrain(rank=0)
