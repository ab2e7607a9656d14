"""Small graphs that tests share."""

import numpy as np

from embcomp.graph import Edges, interactions


def blocks(groups: int = 4, users: int = 15, items: int = 10, within: float = 0.6, across: float = 0.02, seed: int = 0):
    """Users and items of `groups` groups that mostly click within: edges, and the group of each user and item."""
    rng = np.random.default_rng(seed)
    of_user, of_item = np.arange(groups * users) % groups, np.arange(groups * items) % groups
    chance = np.where(of_user[:, None] == of_item[None, :], within, across)
    return interactions(np.nonzero(rng.random(chance.shape) < chance)), of_user, of_item


def power_law(users: int, items: int, edges: int, seed: int = 0, weighted: bool = False) -> Edges:
    rng = np.random.default_rng(seed)
    log = {
        "user_id": (users * rng.random(edges) ** 2).astype(np.int64),
        "item_id": (items * rng.random(edges) ** 3).astype(np.int64),
        "w": rng.integers(1, 4, edges).astype(float),
    }
    return interactions(log, weight="w" if weighted else None, num_users=users, num_items=items)
