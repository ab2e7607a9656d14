"""The neighbours that minhash keeps, against sorting by the hash, and what follows from them."""

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from embcomp.graph import Clusters, cluster, cluster_stream, interactions, sample_neighbours
from embcomp.graph.cli import app
from embcomp.graph.minhash import _mixed, _Smallest, _unmixed, keep_smallest_reference
from embcomp.ops.hashing import hash_key


def mixed(number: int) -> int:
    """The permutation, number by number."""
    number = (number ^ number >> 16) * 0x7FEB352D & 0xFFFFFFFF
    number = (number ^ number >> 15) * 0x846CA68B & 0xFFFFFFFF
    return number ^ number >> 16


def kept_by_hand(pairs: set[tuple[int, int]], hashes: int, seed: int) -> set[tuple[int, int]]:
    kept = set()
    never = int(_unmixed(np.array([0xFFFFFFFF], dtype=np.uint32))[0])  # the number whose hash means "none"
    for side, name in enumerate(("users", "items")):
        for order in range(hashes):
            key = hash_key(seed, f"neighbours of {name}", order) & 0x7FFFFFFF | (0 if never >> 31 else 1 << 31)
            for id in {pair[side] for pair in pairs}:
                kept.add(min((p for p in pairs if p[side] == id), key=lambda pair: mixed(pair[1 - side] ^ key)))
    return kept


def test_the_permutation_and_its_inverse():
    numbers = np.random.default_rng(0).integers(0, 2**32, 1000, dtype=np.uint32)
    assert _mixed(numbers).tolist() == [mixed(number) for number in numbers.tolist()]
    assert np.array_equal(_unmixed(_mixed(numbers)), numbers)
    assert np.array_equal(_mixed(_unmixed(numbers)), numbers)
    for name in ("user", "item"):  # no id has the hash of an empty place
        assert (_unmixed(np.array([2**32 - 1], dtype=np.uint32)) ^ _Smallest(name, 64, 3, None).keys >= 2**31).all()


PAIRS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 14)), min_size=1, max_size=60)


@settings(max_examples=40)
@given(PAIRS, st.integers(1, 4), st.integers(0, 5), st.integers(1, 70))
def test_each_id_keeps_the_first_neighbour_of_every_order(pairs, hashes, seed, length):
    arrays = np.array(pairs)
    blocks = [
        (part[:, 0], part[:, 1].astype(np.int16)) for part in np.split(arrays, range(length, len(arrays), length))
    ]
    edges = sample_neighbours(blocks, hashes, seed=seed)
    expected = kept_by_hand(set(pairs), hashes, seed)
    assert set(zip(edges.users.tolist(), edges.items.tolist(), strict=True)) == expected
    assert len(edges) == len(expected)
    assert (edges.num_users, edges.num_items) == tuple(arrays.max(0) + 1)
    again = sample_neighbours((arrays[::-1, 0], arrays[::-1, 1]), hashes, seed=seed)
    assert np.array_equal(edges.users, again.users)
    assert np.array_equal(edges.items, again.items)


def test_compiled_and_plain_forms_agree():
    rng = np.random.default_rng(1)
    ids, neighbours = rng.integers(0, 50, 5000), rng.integers(0, 2**31, 5000)
    side = _Smallest("user", 7, 0, 50)
    plain = side.table.copy()
    side.update(side.checked(ids), neighbours)
    keep_smallest_reference(ids, neighbours, side.keys, plain)
    assert np.array_equal(side.table, plain)


def test_similar_ids_keep_the_same_neighbours_as_often_as_they_share_them():
    """The share of orders in which two users keep the same item is an estimate of their Jaccard similarity."""
    own, other = np.arange(0, 300), np.arange(100, 400)  # 200 of 400 items are shared
    side = _Smallest("user", 64, 0, None)
    shares = []
    for seed in range(20):
        side = _Smallest("user", 64, seed, None)
        for user, items in enumerate((own, other)):
            side.update(side.checked(np.full(300, user)), items)
        shares.append((side.table[0] == side.table[1]).mean())
    assert np.mean(shares) == pytest.approx(0.5, abs=4 * (0.25 / 1280) ** 0.5)


def planted(groups=20, users=30, items=20, seed=0):
    """Groups of users who click half of the items of their group, and little else."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(groups * users), items // 2)
    item = rng.integers(0, items, user.size) + user // users * items
    astray = rng.random(user.size) < 0.05
    item[astray] = rng.integers(0, groups * items, astray.sum())
    return user, item


def test_planted_groups_are_found_from_a_few_neighbours():
    user, item = planted()
    clusters = cluster_stream([(user[:3000], item[:3000]), (user[3000:], item[3000:])], rows=40, hashes=4)
    whole = cluster(interactions((user, item)), rows=40)
    for found in (clusters, whole):
        groups = found.users.assignment().numpy().reshape(20, 30)
        assert np.mean([np.bincount(group).max() / 30 for group in groups]) > 0.95
    assert clusters.users.rows + clusters.items.rows == 40


def test_files_are_streamed(tmp_path, monkeypatch):
    monkeypatch.setattr("embcomp.graph.minhash._ROWS", 700)
    user, item = planted()
    for part in range(2):
        half = slice(part * 3000, (part + 1) * 3000)
        pl.DataFrame({"u": user[half], "i": item[half].astype(np.int32)}).write_parquet(tmp_path / f"{part}.parquet")
    edges = sample_neighbours(tmp_path, 3, user="u", item="i")
    expected = sample_neighbours((user, item), 3)
    assert np.array_equal(edges.users, expected.users)
    assert np.array_equal(edges.items, expected.items)
    with pytest.raises(ValueError, match=r"no column 'user_id'; there are u, i"):
        sample_neighbours(tmp_path)
    pl.DataFrame({"u": [1, None], "i": [0, 1]}).write_parquet(tmp_path / "2.parquet")
    with pytest.raises(ValueError, match=r"2.parquet: 1 values of 'u' are missing"):
        sample_neighbours(tmp_path, user="u", item="i")


def test_the_command_streams_with_hashes(tmp_path):
    user, item = planted()
    pl.DataFrame({"user_id": user, "item_id": item, "stars": item}).write_parquet(tmp_path / "log.parquet")
    command = [str(tmp_path / "log.parquet"), "--rows", "40", "--out", str(tmp_path / "out"), "--hashes", "4"]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    found = Clusters.load(tmp_path / "out")
    expected = cluster_stream((user, item), rows=40, hashes=4)
    assert torch.equal(found.users.assignment(), expected.users.assignment())
    said = CliRunner().invoke(app, [*command, "--weight", "stars"])
    assert said.exit_code == 2
    assert "--hashes keeps neighbours, whatever their weight: leave these out" in said.output


@pytest.mark.parametrize(
    ("source", "given", "said"),
    [
        ((np.array([0.5]), np.array([1])), {}, "user ids must be integers"),
        ((np.array([0]), np.array([-1])), {}, r"item ids must lie in \[0, 2\^31\), got -1"),
        ((np.array([2**31]), np.array([1])), {}, r"user ids must lie in .* got 2147483648"),
        ((np.array([0, 1]), np.array([1])), {}, "2 users for 1 items"),
        ((np.array([7]), np.array([1])), {"num_users": 5}, "num_users=5, but there is an id 7"),
        ((np.array([0]), np.array([1])), {"num_items": -1}, "num_items must be an integer"),
        ((np.array([0]), np.array([1])), {"hashes": 0}, "hashes must be an integer from 1 to 64, got 0"),
        ((np.array([0]), np.array([1])), {"seed": -1}, "seed must be at least 0"),
        (7, {}, "expected parquet paths, two arrays or an iterable of pairs of arrays, got int"),
        ([np.array([1])], {}, "expected pairs of arrays"),
    ],
)
def test_impossible_sources_are_refused(source, given, said):
    with pytest.raises(ValueError, match=said):
        sample_neighbours(source, **given)


def test_no_interactions_are_no_edges():
    assert len(sample_neighbours([])) == 0
    with pytest.raises(ValueError, match="there are no interactions to cluster"):
        cluster_stream([], rows=4)
