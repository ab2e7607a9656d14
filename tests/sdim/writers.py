"""Writers for processes of their own, and the encoder that all of them share."""

from multiprocessing.connection import Connection

import torch

from embcomp.sdim import SDIM, BehaviorEncoder, BehaviorStore

NUM_ITEMS, DIM = 5_000, 8


def make_encoder(version: str = "1", seed: int = 0, num_items: int = NUM_ITEMS) -> BehaviorEncoder:
    generator = torch.Generator().manual_seed(seed)
    return BehaviorEncoder(SDIM(DIM, 12, 3, seed), torch.randn(num_items, DIM, generator=generator), version)


def write(location: str, first: int, count: int, acknowledged: Connection) -> None:
    """Appends `first`, `first + 1`, ... to one user, and says each item once it is acknowledged."""
    with BehaviorStore(location, make_encoder()) as store:
        for item in range(first, first + count):
            store.append("shared", [item])
            acknowledged.send(item)


def fill(location: str) -> None:
    with BehaviorStore(location, make_encoder()) as store:
        store.append_many({user: range(300) for user in range(100)})
