from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embcomp.semantic_ids import Neighbours, neighbours


def nearest_by_hand(content: np.ndarray, ids: np.ndarray, counts: np.ndarray, k: int) -> dict[int, list[int]]:
    """New id -> training ids by cosine, in float64."""
    unit = content.astype(np.float64) / np.linalg.norm(content, axis=1, keepdims=True)
    trained = [i for i in range(len(ids)) if counts[ids[i]] > 0]
    found = {}
    for i in range(len(ids)):
        if counts[ids[i]] == 0:
            found[int(ids[i])] = [int(ids[j]) for j in sorted(trained, key=lambda j: -float(unit[i] @ unit[j]))[:k]]
    return found


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_they_are_the_nearest_by_cosine(n: int, k: int, new_at_once: int, vectors_at_once: int, seed: int) -> None:
    """Also where there are fewer than k, where ids have no vector, and in blocks of any size."""
    rng = np.random.default_rng(seed)
    content = rng.standard_normal((n, 7)).astype(np.float32) * rng.uniform(0.1, 9, (n, 1)).astype(np.float32)
    ids = rng.permutation(n + 5)[:n]
    counts = rng.integers(0, 3, n + 5)
    counts[ids[0]] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "NEW", new_at_once)
        patch.setattr(neighbours, "VECTORS", vectors_at_once)
        found = Neighbours.of(content, torch.from_numpy(counts), ids=torch.from_numpy(ids), k=k, temperature=0.3)
    expected = nearest_by_hand(content, ids, counts, k)
    assert found.ids.tolist() == sorted(expected)
    assert found.nearest.dtype == torch.int32
    for id, row in zip(found.ids.tolist(), found.nearest.tolist(), strict=True):
        assert row == expected[id] + [-1] * (k - len(expected[id]))
    unit = content.astype(np.float64) / np.linalg.norm(content, axis=1, keepdims=True)
    place = {int(id): i for i, id in enumerate(ids)}
    for id, row, weights in zip(found.ids.tolist(), found.nearest.tolist(), found.weights.numpy(), strict=True):
        each = np.array([np.exp(unit[place[id]] @ unit[place[j]] / 0.3) if j >= 0 else 0.0 for j in row])
        np.testing.assert_allclose(weights, each / each.sum(), rtol=1e-4)


def test_content_comes_from_files_too(content: Tensor, tmp_path: Path) -> None:
    counts = torch.arange(600) % 4
    expected = Neighbours.of(content, counts, k=5)
    np.save(tmp_path / "vectors.npy", content.numpy())
    pl.DataFrame({"vector": content.tolist()}, schema={"vector": pl.List(pl.Float32)}).write_parquet(
        tmp_path / "v.parquet"
    )
    for found in (
        Neighbours.of(tmp_path / "vectors.npy", counts, k=5),
        Neighbours.of(tmp_path / "v.parquet", counts, k=5, column="vector"),
    ):
        assert torch.equal(found.ids, expected.ids)
        assert torch.equal(found.nearest, expected.nearest)


def test_without_new_items_there_is_none(content: Tensor) -> None:
    found = Neighbours.of(content, torch.ones(600), k=3)
    assert found.ids.shape == (0,)
    assert found.nearest.shape == (0, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "temperature must be positive, got 0"),
        ({"k": 0}, "k must be an integer of at least 1, got 0"),
        ({"counts": torch.zeros(600)}, "no item with a vector occurs in training"),
        ({"counts": -torch.ones(600)}, "counts must be non-negative"),
        ({"counts": torch.ones(599)}, r"600 vectors, but counts of \[599\] ids; give the ids of the vectors in `ids`"),
        ({"counts": torch.ones(601)}, r"600 vectors, but counts of \[601\] ids; give the ids of the vectors in `ids`"),
        ({"counts": torch.ones(599), "ids": torch.arange(600)}, r"id 599 is outside of counts, \[599\]"),
        ({"ids": torch.arange(3)}, r"ids must be \[600\], one for each vector, got \[3\]"),
        ({"ids": torch.arange(600) - 1}, "id -1 is outside of counts"),
        ({"ids": torch.arange(600) // 2}, "ids must be different, 300 repeat"),
        ({"content": torch.full((600, 4), torch.nan)}, "vector 0 is NaN or infinite"),
    ],
)
def test_what_does_not_fit_is_refused(content: Tensor, settings: dict, message: str) -> None:
    given = {"content": content, "counts": torch.arange(600), **settings}
    with pytest.raises(ValueError, match=message):
        Neighbours.of(given.pop("content"), given.pop("counts"), **given)


@pytest.mark.parametrize(
    ("ids", "nearest", "weights", "message"),
    [
        ([0, 1], [[0], [0]], [[1.0, 1], [1, 1]], r"nearest \[n, k\], weights \[n, k\], got \[2\], \[2, 1\], \[2, 2\]"),
        ([1, 1], [[0], [0]], [[1.0], [1]], "ids must be ascending, each once"),
        ([0.5], [[0]], [[1.0]], "ids and nearest must be integers, got torch.float32 and torch.int64"),
        ([0], [[0.5]], [[1.0]], "must be integers, got torch.int64 and torch.float32"),
        ([0], [[1]], [[1]], "weights must be finite floats, not negative"),
        ([0], [[1]], [[-1.0]], "weights must be finite floats, not negative"),
        ([0], [[1]], [[float("nan")]], "weights must be finite floats, not negative"),
    ],
)
def test_neighbours_of_ones_own_must_be_whole(ids: list, nearest: list, weights: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Neighbours(torch.tensor(ids), torch.tensor(nearest), torch.tensor(weights))


def test_a_temperature_too_low_for_floats_is_refused(content: Tensor) -> None:
    with pytest.raises(ValueError, match="raise the temperature"):
        Neighbours.of(content, torch.arange(600) % 4, temperature=1e-40)


def test_neighbours_are_loaded_as_they_were_saved(tmp_path: Path) -> None:
    near = Neighbours.of(torch.randn(9, 4), counts=torch.tensor([1, 0, 2, 0, 3, 1, 0, 1, 1]), k=3)
    near.save(tmp_path / "near")
    again = Neighbours.load(tmp_path / "near")
    for name in ("ids", "nearest", "weights"):
        assert torch.equal(getattr(again, name), getattr(near, name))
    data = (tmp_path / "near").read_bytes()
    (tmp_path / "near").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="near is damaged or was edited"):
        Neighbours.load(tmp_path / "near")
