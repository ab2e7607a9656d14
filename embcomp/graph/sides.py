"""The two ends of an edge."""

from typing import Literal, get_args

Side = Literal["users", "items"]


def check_side(side: str) -> None:
    """Raise ValueError if `side` is neither "users" nor "items"."""
    if side not in get_args(Side):
        raise ValueError(f"side must be 'users' or 'items', got {side!r}")
