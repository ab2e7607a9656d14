"""The behavior store against encoding its events from nothing."""

import random

import numpy as np
import pytest
import torch

import embcomp
from embcomp.sdim import (
    SDIM,
    BehaviorEncoder,
    BehaviorStore,
)
from embcomp.sdim.encoder import Events
from embcomp.sdim.history import History
from tests.sdim.stores import TOLERANCE, check
from tests.sdim.writers import DIM


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_appends_add_up_and_old_events_expire(location, encoder, dtype):
    draw = random.Random(0)
    truth: dict[str, list[int]] = {"ann": [], "bob": [], "7": []}
    with BehaviorStore(location, encoder, max_events=20, dtype=dtype) as store:
        for _ in range(40):
            user = draw.choice(list(truth))
            items = [draw.randrange(50) for _ in range(draw.choice([0, 1, 1, 2, 5, 30]))]
            truth[user] = [*truth[user], *items][-20:]
            assert store.append(int(user) if user == "7" else user, items) == len(truth[user])
        for user, events in truth.items():
            check(store, user, events, TOLERANCE[dtype])
    with BehaviorStore(location, encoder, dtype=dtype) as again:
        for user, events in truth.items():
            check(again, user, events, TOLERANCE[dtype])


def test_many_users_at_once_and_the_unknown(store):
    assert store.append_many({"ann": [1, 2], "bob": torch.tensor([3])}) == {"ann": 2, "bob": 1}
    buckets = store.fetch(["bob", "nobody", "ann"])
    assert buckets.counts[:, 0].sum(-1).tolist() == [1, 0, 2]
    assert not buckets.sums[1].any()
    assert store.events("nobody") == []
    assert store.fetch([]).sums.shape == (0, 4, 8, DIM)
    for one in ("ann", b"ann", 7):  # "ann" is an iterable of the users "a", "n" and "n"
        with pytest.raises(ValueError, match=r"users must be a list of users, got .*: give"):
            store.fetch(one)
    with pytest.raises(ValueError, match="events must map users to their items, got str"):
        store.append_many("ann")
    candidates = torch.randn(3, 5, DIM)
    pooled = store.encoder.sdim.query(candidates, buckets)
    direct = store.encoder.sdim(candidates[2:], store.encoder.items(torch.tensor([[1, 2]])))
    torch.testing.assert_close(pooled[2:], direct)
    store.forget("ann")
    store.forget("nobody")
    assert store.events("ann") == []


def test_smaller_types_are_smaller(encoder):
    history = History.encode(encoder, np.arange(100))
    sizes = [len(history.to_bytes(dtype, "ann")) for dtype in ("float32", "float16", "int8")]
    occupied = int((history.counts > 0).sum())
    assert sizes[0] - sizes[1] == 2 * DIM * occupied
    assert sizes[1] - sizes[2] == (DIM - 4) * occupied  # less a scale for each bucket
    few = History.encode(encoder, np.arange(1))
    assert len(few.to_bytes("float32", "ann")) < 300  # empty buckets take no room but that of their counts


def test_rounding_does_not_add_up(tmp_path, encoder):
    """Three hundred events through a ring of twenty, in int8."""
    with BehaviorStore(tmp_path, encoder, max_events=20, dtype="int8") as store:
        for start in range(0, 300, 5):
            store.append("ann", range(start, start + 5))
        check(store, "ann", list(range(280, 300)), TOLERANCE["int8"])


def test_an_append_with_its_token_counts_once(store):
    for _ in range(2):
        assert store.append("ann", [1, 2], token="order 66") == 2
    assert store.append("ann", [1, 2]) == 4


def test_an_open_id_space_goes_to_the_last_id(location):
    items = embcomp.nn.CompressedEmbedding(None, DIM, embcomp.HashingTrick(rows=9))
    with BehaviorStore(location, BehaviorEncoder(SDIM(DIM, 12), items, "1")) as store:
        assert store.append("ann", [2**63 - 1, 0]) == 2
        assert store.events("ann") == [2**63 - 1, 0]
        with pytest.raises(IndexError, match="item -1 is out of range"):
            store.append("ann", [-1])


def test_the_encoder_is_saved_whole_or_not_at_all(tmp_path, encoder):
    path = tmp_path / "encoder.pt"
    encoder.save(path)
    loaded = BehaviorEncoder.load(path)
    assert loaded.stamp == encoder.stamp
    ids = np.array([3, 1, 4999])
    for ours, theirs in zip(loaded(ids), encoder(ids), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.pt"]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged, or not a file of embcomp"):
        BehaviorEncoder.load(path)
    assert isinstance(encoder(ids), Events)
