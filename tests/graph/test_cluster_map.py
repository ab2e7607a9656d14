import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embcomp.graph import ClusterMap, Mixture

MAPS = st.integers(1, 70).flatmap(
    lambda rows: st.tuples(st.just(rows), st.lists(st.integers(-1, rows - 1), max_size=50), st.integers(0, 3))
)


@given(MAPS)
def test_rows_and_bytes(case: tuple[int, list[int], int]) -> None:
    rows, of_id, kept = case
    found = ClusterMap.of(of_id or torch.empty(0, dtype=torch.int64), rows + kept, kept)
    assert found.assignment().tolist() == of_id
    assert found.row_of(torch.tensor([len(of_id), 2**62])).tolist() == [-1, -1]
    assert found.sizes().tolist() == [of_id.count(row) for row in range(rows)]
    values = rows + (-1 in of_id)
    bits = max(1, (values - 1).bit_length())
    assert found.bits == bits
    assert found.nbytes == 4 * (-(-len(of_id) * bits // 32) + 2)
    assert found.nbytes <= bits * len(of_id) / 8 + 12


def test_hot_ids_get_rows_of_their_own() -> None:
    found = ClusterMap.of([0, 0, 1, 2, 2, -1], rows=4, unseen_rows=1)
    hot = found.with_own_rows([0, 2, 4, 5, 0])
    assert hot.assignment().tolist() == [3, 0, 1, 2, 4, 5]  # id 2 was alone already
    assert (hot.rows, hot.own_rows, hot.unseen_rows) == (7, 6, 1)
    assert hot.labels.tolist() == [0, 1, 2, -1, -1, -1]
    assert torch.equal(found.with_own_rows([]).assignment(), found.assignment())
    with pytest.raises(IndexError, match=r"\[0, 6\), got 0 .. 6"):
        found.with_own_rows([0, 6])


@pytest.mark.parametrize(
    ("rows", "size", "message"),
    [
        ([0, 3], 3, r"id 1 has row 3, expected one in \[0, 3\)"),
        ([0, -2], 3, "id 1 has row -2"),
        ([0.5], 3, "must be integers"),
        ([[0]], 3, "must be integers"),
        ([0], 0, r"rows of a map must be an integer in \[1, 2\^31\)"),
        ([0], 2**31, r"rows of a map must be an integer in \[1, 2\^31\)"),
    ],
)
def test_bad_maps_are_refused(rows: list, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClusterMap.of(torch.tensor(rows), size)
    with pytest.raises(ValueError, match="side must be 'users' or 'items', got 'user'"):
        ClusterMap.of([0], 1, side="user")


def test_a_file_holds_the_whole_map(tmp_path: Path) -> None:
    found = ClusterMap.of(
        [2, 0, -1], 4, 1, side="users", coherence=0.25, clustering="x", labels=torch.tensor([7, 8, 9])
    )
    found.save(tmp_path / "users.map")
    again = ClusterMap.load(tmp_path / "users.map")
    for name in ("num_ids", "rows", "unseen_rows", "has_unseen", "side", "coherence", "clustering"):
        assert getattr(again, name) == getattr(found, name)
    assert torch.equal(again.words, found.words)
    assert torch.equal(again.labels, found.labels)
    assert torch.equal(pickle.loads(pickle.dumps(again)).assignment(), found.assignment())
    assert [path.name for path in tmp_path.iterdir()] == ["users.map"]


def test_truncated_and_edited_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "item.map"
    ClusterMap.of(torch.arange(50) % 7, 7).save(path)
    whole = path.read_bytes()
    for wrong in [whole[:n] for n in range(0, len(whole), 17)] + [whole + b"\0"]:
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"item\.map is damaged"):
            ClusterMap.load(path)
    for at in range(0, len(whole), 11):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=r"item\.map is damaged"):
            ClusterMap.load(path)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="holds a cluster map, not a mixture"):
        Mixture.load(path)
    with pytest.raises(FileNotFoundError):
        ClusterMap.load(tmp_path / "none.map")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "item.map"
    ClusterMap.of([0, 1], 2).save(path)

    def fails(*_) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        ClusterMap.of([1, 1], 2).save(path)
    assert ClusterMap.load(path).assignment().tolist() == [0, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["item.map"]


def test_maps_need_torch_alone() -> None:
    code = """
import sys
for name in ("numpy", "scipy", "igraph", "polars", "networkx"):
    sys.modules[name] = None
import warnings; warnings.simplefilter("ignore")
import torch, embcomp
from embcomp.graph import ClusterMap, Mixture
clusters = ClusterMap.of([0, 1, 1, -1], rows=2)
assert embcomp.nn.CompressedEmbedding(4, 8, embcomp.GraphHash(clusters))(torch.arange(4)).shape == (4, 8)
clusters.save(sys.argv[1]); ClusterMap.load(sys.argv[1])
try:
    embcomp.graph.cluster
except ModuleNotFoundError as error:
    assert embcomp.extras.install("graph") in str(error), error
else:
    raise AssertionError
"""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code, f"{folder}/item.map"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr
