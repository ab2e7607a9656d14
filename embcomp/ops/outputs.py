"""Memory of large outputs, used again once nobody holds it: fresh pages cost more than what is written to them."""

import sys

import torch
from torch import Tensor

from embcomp.ops.tables import empty_table

LARGE = 32 << 20
"""The bytes from which the system gives fresh memory for each tensor; smaller ones come from memory used before."""
_KEPT = 2  # the output of a step is often held until that of the next one is there


_Memory = tuple[torch.UntypedStorage, tuple[int, int]]  # and the count of those who hold it, if nobody else does


class Outputs:
    """An allocator of float32 matrices on CPU that keeps the memory of the last large ones.

    Memory is given again when no tensor, view or array refers to it, so that results never change.

    Example:
        >>> import torch
        >>> outputs = Outputs()
        >>> first = outputs.empty(1 << 20, 8)
        >>> place = first.data_ptr()
        >>> outputs.empty(1 << 20, 8).data_ptr() == place
        False
        >>> del first
        >>> outputs.empty(1 << 20, 8).data_ptr() == place
        True
    """

    def __init__(self) -> None:
        self._kept: list[_Memory] = []

    def empty(self, rows: int, columns: int) -> Tensor:
        """Return an uninitialised tensor, float32 [rows, columns] on CPU."""
        size = rows * columns * 4
        if size < LARGE:
            return torch.empty(rows, columns, dtype=torch.float32, device="cpu")
        storage, holders = self._free(size) or _new(rows, columns)
        made = torch.empty(0, dtype=torch.float32, device="cpu")
        made.set_(storage, 0, (rows, columns))  # pyright: ignore[reportCallIssue]
        self._kept = [*self._kept[1 - _KEPT :], (storage, holders)]
        return made

    def _free(self, size: int) -> _Memory | None:
        """Take memory of this size out of the list, which another thread may ask too."""
        for _ in range(len(self._kept)):
            try:
                storage, holders = self._kept.pop(0)
            except IndexError:
                return None
            if storage.nbytes() != size or storage.is_shared():
                continue
            if _holders(storage) == holders:
                return storage, holders
            self._kept.append((storage, holders))
        return None


def _new(rows: int, columns: int) -> _Memory:
    storage = empty_table(rows, columns).untyped_storage()
    holders = _holders(storage)  # counted as in `_free`, before it stands in a tuple
    return storage, holders


def _holders(storage: torch.UntypedStorage) -> tuple[int, int]:
    """The number of tensors that refer to the memory, and of references to its one Python object."""
    return torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(storage)  # pyright: ignore
