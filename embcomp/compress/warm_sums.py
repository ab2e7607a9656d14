"""The warm start of vectors that are sums of rows, some columns of the rows at a time.

No value of such a vector depends on two columns of a row, so each column is a least-squares problem of its own. The
temporaries are of the columns at hand alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from embcomp.methods.base import Rows
from embcomp.ops.row_sums import add_rows
from embcomp.trained import BLOCK, Trained, Unknowns, pooled_rows, usage

_SHARE = 4  # of the stores' memory, what all temporaries may take
_DONE = 1e-12  # of the squared residual at the start


class _Part(NamedTuple):
    """The columns of a chunk that are fitted now: its number, its store, and its columns of the vector."""

    chunk: int
    store: str
    columns: slice


def fit_sums(trained: Sequence[Trained], stores: Mapping[str, Tensor], steps: int) -> None:
    """Fill the rows of tables whose vectors are sums of rows (`Trained.first_columns`), in place.

    The conjugate gradients of all columns run side by side, each with steps of its own length: after as many steps, the
    error is at most that of one run over all columns.

    Args:
        trained: tables that share stores.
        stores: the rows [rows, dim] by store.
        steps: the maximum number of steps.
    """
    stores = {name: stores[name] for table in trained for _, name in table.learned}
    used = usage(trained, stores)
    width = max(store.shape[1] for store in stores.values())
    for name, store in stores.items():
        store.masked_fill_(used[name] > 0, 0.0)
        used[name].clamp_(min=1e-30)
    at_once = _at_once(sum(len(store) for store in stores.values()), width)
    for first in range(0, width, at_once):
        columns = {name: store[:, first : first + at_once] for name, store in stores.items()}
        columns = {name: own for name, own in columns.items() if own.shape[1]}
        parts = [_parts(table, stores, columns, first) for table in trained]
        _fit_columns(trained, parts, columns, used, steps)


def _at_once(rows: int, width: int) -> int:
    """The number of columns whose temporaries take a share of the rows' memory, or as much as a block of vectors."""
    room = max(rows * width // _SHARE, BLOCK * width)
    return min(max((room // max(rows, 1) - 1) // 3, 1), width)  # three values for each column, one for each row


def _parts(table: Trained, stores: Mapping[str, Tensor], columns: Mapping[str, Tensor], first: int) -> list[_Part]:
    places = table.first_columns({name: store.shape[1] for name, store in stores.items()})
    assert places is not None
    parts = []
    for (chunk, store), place in zip(table.learned, places, strict=True):
        if store in columns:
            start = place + first
            parts.append(_Part(chunk, store, slice(start, start + columns[store].shape[1])))
    return parts


def _fit_columns(
    trained: Sequence[Trained],
    parts: Sequence[list[_Part]],
    columns: Mapping[str, Tensor],
    used: Unknowns,
    steps: int,
) -> None:
    """Solve the normal equations of these columns by conjugate gradients, from zero, preconditioned by `used`."""
    x = {name: own if own.dtype == torch.float32 else own.float() for name, own in columns.items()}
    residual = {name: torch.zeros_like(own, memory_format=torch.contiguous_format) for name, own in x.items()}
    for table, own in zip(trained, parts, strict=True):
        for (rows, _), vectors, counts in table.blocks():
            for part in own:
                _add(residual, part, rows, counts * vectors[:, part.columns])
    direction = {name: own / used[name] for name, own in residual.items()}
    size = start = _dot(residual, direction)
    image = {name: torch.empty_like(own) for name, own in residual.items()}
    for _ in range(steps):
        active = size > _DONE * start
        if not bool(active.any()):
            break
        _apply(trained, parts, direction, image)
        curvature = _dot(direction, image)
        active &= curvature > 0.0
        step = torch.where(active, size / curvature, 0.0).float()
        for name, own in x.items():
            by = step[: own.shape[1]]
            own.addcmul_(direction[name], by)
            residual[name].addcmul_(image[name], by, value=-1)
        new = _dot(residual, residual, used)
        keep = torch.where(active, new / size, 0.0).float()
        for name, own in direction.items():
            own.mul_(keep[: own.shape[1]]).addcdiv_(residual[name], used[name])
        size = torch.where(active, new, 0.0)
    for name, own in columns.items():
        if x[name] is not own:
            own.copy_(x[name])


def _apply(trained: Sequence[Trained], parts: Sequence[list[_Part]], direction: Unknowns, image: Unknowns) -> None:
    """Compute J^T counts J direction, with J the map from these columns to those of the vectors."""
    for own in image.values():
        own.zero_()
    for table, own in zip(trained, parts, strict=True):
        for (rows, _), _, counts in table.blocks():
            for summed in _summed(own):
                vectors = counts * sum(pooled_rows(direction[part.store], rows[part.chunk]) for part in summed)
                for part in summed:
                    _add(image, part, rows, vectors)


def _summed(parts: Sequence[_Part]) -> Iterator[list[_Part]]:
    """Yield the parts that add up to the same columns."""
    places: dict[int, list[_Part]] = {}
    for part in parts:
        places.setdefault(part.columns.start, []).append(part)
    yield from places.values()


def _add(to: Unknowns, part: _Part, rows: Sequence[Rows], values: Tensor) -> None:
    read = rows[part.chunk]
    add_rows(to[part.store], read.rows, values, read.weights)


def _dot(a: Unknowns, b: Unknowns, over: Unknowns | None = None) -> Tensor:
    """The sums of products a * b (/ over) by column, float64: float32 loses products of small numbers."""
    width = max(own.shape[1] for own in a.values())
    first = next(iter(a.values()))
    total = torch.zeros(width, dtype=torch.float64, device=first.device)
    for name, own in a.items():
        for start in range(0, len(own), BLOCK):
            part = slice(start, start + BLOCK)
            product = own[part].double() * b[name][part]
            total[: own.shape[1]] += (product if over is None else product / over[name][part]).sum(0)
    return total
