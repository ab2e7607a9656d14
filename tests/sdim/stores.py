"""What a behavior store should hold, and what it holds."""

import torch

from embcomp.sdim import (
    BehaviorEncoder,
    BehaviorStore,
)
from tests.sdim.writers import DIM

TOLERANCE = {"float32": 1e-4, "float16": 0.03, "int8": 0.3}


def from_nothing(encoder: BehaviorEncoder, events: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    vectors = encoder.items(torch.tensor(events, dtype=torch.int64))
    sums, counts = encoder.sdim.encode(vectors.view(1, -1, DIM))
    return sums[0], counts[0]


def check(store: BehaviorStore, user: str, events: list[int], tolerance: float = 1e-4) -> None:
    assert store.events(user) == events
    buckets = store.fetch([user])
    sums, counts = from_nothing(store.encoder, events)
    assert torch.equal(buckets.counts[0], counts)
    torch.testing.assert_close(buckets.sums[0], sums, atol=tolerance, rtol=0)
    assert not buckets.sums[0][counts == 0].any()


def raw(store: BehaviorStore, user: str) -> bytes:
    return store._backend.read([b"u:" + user.encode()])[0]


def put(store: BehaviorStore, user: str, record: bytes) -> None:
    key = b"u:" + user.encode()
    store._backend.update([key], lambda _: {key: record})
