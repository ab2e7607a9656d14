"""What a behavior store may refuse, and why."""

from embcomp.files import Damaged


class StoreError(RuntimeError):
    """Base of what a behavior store raises; the store is as it was before the call."""


class StampMismatch(StoreError):
    """The store holds histories of another model or projection."""


class StoreFull(StoreError):
    """No room: the map of LMDB, the memory of Redis, the disk."""


class StoreUnavailable(StoreError):
    """The server is gone, or too many writers want the same user; the call may be repeated with the same token."""


class StoreDamaged(StoreError, Damaged):
    """The file of a store is not what was written (a ValueError, too)."""


class CorruptRecord(StoreDamaged):
    """The bytes of a user are not what was written."""
