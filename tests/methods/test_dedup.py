"""Dedup: planted duplicates are found and merged first, means by hand, blocks, tolerances."""

import pytest
import torch
from torch import nn

import embcomp
from embcomp import Dedup, LowBit, Table
from embcomp.methods.dedup import merged
from embcomp.nn import CompressedEmbedding


def planted(groups: int, ids: int, noise: float, dim: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors around points, and which point each lies around."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(groups), torch.randint(groups, (ids - groups,), generator=random)])
    points = torch.randn(groups, dim, generator=random)
    return points[labels] + noise * torch.randn(ids, dim, generator=random), labels


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.02])
def test_planted_groups_are_found(noise: float) -> None:
    vectors, labels = planted(40, 3000, noise)
    owners, left = merged(vectors, 40, 0.7, None, 0)
    assert left == 40
    pairs = torch.stack([owners, labels]).unique(dim=1)
    assert pairs.shape[1] == 40  # one owner for each label, and the other way round


@pytest.mark.parametrize("init", ["warm", "fit"])
def test_merged_rows_are_means_and_the_others_stay(init: str) -> None:
    vectors, labels = planted(25, 400, 1e-3)
    model = nn.ModuleDict({"a": nn.Embedding.from_pretrained(vectors.clone(), freeze=False)})
    embcomp.compress_(model, Dedup(rows=25, vectors=vectors), init=init)
    means = torch.zeros(25, 16).index_add_(0, labels, vectors) / labels.bincount().unsqueeze(1)
    torch.testing.assert_close(model["a"].materialize().detach(), means[labels])
    vectors, _ = planted(50, 60, 1e-4)
    model = nn.ModuleDict({"a": nn.Embedding.from_pretrained(vectors.clone(), freeze=False)})
    embcomp.compress_(model, Dedup(rows=55, vectors=vectors), init=init)  # five of ten close pairs
    off = (model["a"].materialize().detach() - vectors).abs().amax(1)
    assert float(off.max()) < 1e-3
    assert int((off == 0).sum()) >= 50


def test_blocks_are_merged_whole_and_the_last_may_be_short() -> None:
    random = torch.Generator().manual_seed(1)
    kinds = torch.randn(4, 3, 8, generator=random)  # blocks of three ids
    which = torch.arange(34) % 4
    vectors = kinds[which].reshape(-1, 8)[:100]  # the last block has one id
    module = CompressedEmbedding(100, 8, Dedup(rows=15, vectors=vectors, block=3))
    rows = module.encoder(torch.arange(100))[0].rows.squeeze(1)
    assert module.stores[0].weight.shape == (15, 8)
    assert torch.equal(rows % 3, torch.arange(100) % 3)
    owners = (rows // 3)[::3]
    assert all(len(owners[:33][which[:33] == kind].unique()) == 1 for kind in range(4))


def test_the_share_of_entries_decides() -> None:
    """Two blocks that agree in three of four entries are one at share .7, and two at share 1."""
    vectors = torch.zeros(2, 4)
    vectors[1, 0] = 5.0
    assert merged(vectors, 1, 0.7, 0.01, 0)[1] == 1
    assert merged(vectors, 1, 1.0, 0.01, 0)[1] == 2


def test_a_tolerance_that_leaves_more_rows_is_refused_with_their_number() -> None:
    vectors, _ = planted(40, 300, 1e-4)
    with pytest.raises(ValueError, match=r"table 'a': tolerance=0.01 leaves 40 rows, and rows=20 are wanted; raise"):
        Dedup(rows=20, vectors=vectors, tolerance=0.01).plan([Table("a", 300, 16)])
    Dedup(rows=40, vectors=vectors, tolerance=0.01).plan([Table("a", 300, 16)])


def test_budgets_are_filled_and_seeds_decide() -> None:
    vectors, _ = planted(100, 2000, 0.3)
    table = [Table("a", 2000, 16)]
    method = Dedup.for_budget(table, 20_000, vectors=vectors)
    stored = method.plan(table).nbytes()
    assert 19_800 < stored <= 20_000
    maps = [Dedup(rows=90, vectors=vectors, seed=seed).plan(table).tables[0].encoder.words for seed in (0, 0, 1)]
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])
    assert CompressedEmbedding(2000, 16, LowBit(bits=4, of=method))(torch.arange(3)).shape == (3, 16)


def test_vectors_that_do_not_fit_are_refused() -> None:
    table = [Table("a", 30, 16)]
    for vectors, said in (
        (torch.randn(29, 16), r"table 'a': vectors must be floats \[30, 16\], got torch.float32 \[29, 16\]"),
        (torch.zeros(30, 16, dtype=torch.int64), "floats"),
        (torch.full((30, 16), torch.nan), "NaN or infinite"),
        ({"b": torch.randn(30, 16)}, "vectors names no table 'a'"),
    ):
        with pytest.raises(ValueError, match=said):
            Dedup(rows=3, vectors=vectors).plan(table)
    with pytest.raises(ValueError, match="share"):
        Dedup(rows=3, vectors=torch.randn(30, 16), share=1.5)
