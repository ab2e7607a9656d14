"""The errors of a behavior store."""

from embcomp.files import Damaged


class StoreError(RuntimeError):
    """The base of all errors of a behavior store; the store is as it was before the call."""


class StampMismatch(StoreError):
    """The store holds histories of another model or projection."""


class StoreFull(StoreError):
    """There is no room left: in LMDB's map, in Redis' memory or on the disk."""


class StoreUnavailable(StoreError):
    """The server does not answer, or too many writers change the same user; repeat the call with the same token."""


class StoreDamaged(StoreError, Damaged):
    """The file of a store differs from the one that was written (it is a ValueError, too)."""


class CorruptRecord(StoreDamaged):
    """The bytes of a user differ from those that were written."""
