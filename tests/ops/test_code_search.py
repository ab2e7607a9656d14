"""Search in packed codes against all products in float64, with and without the compiled form."""

import pytest
import torch
from torch import Tensor

from embcomp.ops import code_search as module
from embcomp.ops import native
from embcomp.ops.code_search import best_of, code_search, code_search_reference, search_blocks
from embcomp.ops.packed_columns import PackedColumns, groups_nbytes

GROUPS = [((64, 4),), ((64, 1),), ((5, 3),), ((70, 2),), ((16, 8),), ((10, 5), (3, 2), (20, 1)), ((130, 4),), ((1, 1),)]


def drawn(groups: tuple[tuple[int, int], ...], rows: int, seed: int = 0) -> tuple[Tensor, PackedColumns]:
    random = torch.Generator().manual_seed(seed)
    codes = torch.cat([torch.randint(0, 1 << bits, (rows, n), generator=random) for n, bits in groups], 1)
    return codes, PackedColumns.of(codes.to(torch.uint8), groups)


def products(codes: Tensor, groups: tuple[tuple[int, int], ...], scales: Tensor | None, queries: Tensor) -> Tensor:
    middle = torch.cat([torch.full((n,), (2**bits - 1) / 2, dtype=torch.float64) for n, bits in groups])
    values = codes.double() - middle
    return queries.double() @ (values if scales is None else values * scales.double().unsqueeze(1)).T


@pytest.mark.parametrize("groups", GROUPS, ids=str)
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_the_best_of_all_products(groups, scaled, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(native, "library", lambda: None)
    rows = 700  # neither whole blocks nor whole tiles
    codes, packed = drawn(groups, rows)
    assert torch.equal(packed.read(torch.arange(rows)), codes.to(torch.uint8))
    assert packed.data.numel() == groups_nbytes(rows, groups)
    random = torch.Generator().manual_seed(1)
    scales = torch.rand(rows, generator=random) + 0.1 if scaled else None
    queries = torch.randn(7, codes.shape[1], generator=random) * torch.logspace(-3, 3, 7).unsqueeze(1)
    found = code_search(packed, scales, queries, 9)
    expected = products(codes, groups, scales, queries)
    sizes = queries.abs().sum(1, keepdim=True) * 128
    assert torch.allclose(found.scores.double() / sizes, expected.topk(9).values / sizes, atol=1e-6)
    assert torch.allclose(expected.gather(1, found.rows) / sizes, found.scores / sizes.double(), atol=1e-6)
    assert all(row.unique().numel() == 9 for row in found.rows)


@pytest.mark.parametrize("compiled", [True, False])
def test_equal_scores_go_to_the_lower_row(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(native, "library", lambda: None)
    codes, packed = drawn(((3, 1),), 400)  # 8 different rows
    found = code_search(packed, None, torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]]), 30)
    scores = products(codes, ((3, 1),), None, torch.tensor([[1.0, 2.0, 4.0]]))[0]
    expected = scores.sort(descending=True, stable=True).indices[:30]
    assert found.rows[0].tolist() == expected.tolist()
    assert found.rows[1].tolist() == list(range(30))


def test_all_rows_and_one_row():
    _, packed = drawn(((6, 2),), 65)
    queries = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    found = code_search(packed, None, queries, 65)
    assert torch.equal(found.rows.sort(1).values, torch.arange(65).expand(3, -1))
    assert torch.allclose(found.scores[:, :1], code_search(packed, None, queries, 1).scores)


def test_queries_that_integers_do_not_tell_apart():
    """One huge value rounds all others to nothing: the bound must keep what they decide."""
    codes, packed = drawn(((64, 4),), 600)
    codes[:, 0] = 7
    packed = PackedColumns.of(codes.to(torch.uint8), ((64, 4),))
    queries = torch.randn(4, 64, generator=torch.Generator().manual_seed(3))
    queries[:, 0] = 1e4
    expected = products(codes, ((64, 4),), None, queries).topk(5)
    found = code_search(packed, None, queries, 5)
    assert torch.equal(found.rows, expected.indices)


def test_no_queries_and_wrong_k():
    _, packed = drawn(((4, 2),), 10)
    assert code_search(packed, None, torch.empty(0, 4), 3).rows.shape == (0, 3)
    with pytest.raises(ValueError, match=r"k must lie in \[1, 10\]"):
        code_search(packed, None, torch.zeros(1, 4), 11)
    with pytest.raises(ValueError, match="queries must be"):
        code_search(packed, None, torch.zeros(1, 5), 3) if native.library() else packed.groups[9]
    with pytest.raises(ValueError, match="rows take"):
        code_search(PackedColumns(packed.data, 900, packed.groups), None, torch.zeros(1, 4), 3)


def test_blocks_hold_few_scores(monkeypatch):
    table = torch.randn(900, 5, generator=torch.Generator().manual_seed(4))
    queries = torch.randn(6, 5, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(module, "_SCORES", 64)
    seen = []

    def vectors(rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return table[rows]

    found = search_blocks(vectors, 900, queries, 4)
    assert max(seen) * len(queries) <= 64
    assert torch.equal(found.rows, (queries @ table.T).topk(4).indices)


def test_the_reference_is_what_best_of_says():
    codes, packed = drawn(((8, 3),), 50)
    queries = torch.randn(2, 8, generator=torch.Generator().manual_seed(6))
    whole = products(codes, ((8, 3),), None, queries).float()
    assert torch.equal(best_of(whole, torch.arange(50), 6).rows, code_search_reference(packed, None, queries, 6).rows)
