"""Tables trained for several widths at once, and cut to one of them afterwards."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from glob import escape
from typing import Any

import torch
from torch import Tensor, nn

from embcomp.compress import CompressionReport, compress_
from embcomp.holders import Holder, holders
from embcomp.match import match
from embcomp.methods.base import Method
from embcomp.methods.full import Full
from embcomp.methods.nested import Nested


def nested_loss(
    model: nn.Module,
    loss: Callable[[], Tensor],
    widths: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Add up a loss at several widths of the tables (Kusupati et al. 2022, arXiv 2205.13147, equation 1).

    `loss` runs once for each width, under `at_width`. A retrieval loss that draws its negatives inside of `loss` draws
    them by the scores of that width, without which widths are not nested in their order of items (Wang et al. 2024,
    arXiv 2406.07432).

    Args:
        model: the model that `loss` calls.
        loss: a function from nothing to a scalar tensor.
        widths: the widths, each at most that of the widest table.
        weights: the weight of each width, by default 1 / len(widths).

    Returns:
        The weighted sum, a scalar.

    Raises:
        ValueError: there are no widths, one is below 1 or above all tables, or the weights do not match them.

    Example:
        >>> import torch, embcomp
        >>> model = torch.nn.Embedding(100, 16)
        >>> ids = torch.arange(10)
        >>> loss = embcomp.nested_loss(model, lambda: model(ids).square().sum(), widths=[4, 16])
        >>> torch.allclose(loss, 0.5 * (model(ids)[:, :4].square().sum() + model(ids).square().sum()))
        True
    """
    if not widths:
        raise ValueError("nested_loss needs at least one width, such as widths=[8, 16, 32]")
    shares = [1 / len(widths)] * len(widths) if weights is None else list(weights)
    if len(shares) != len(widths):
        raise ValueError(f"nested_loss: {len(shares)} weights for {len(widths)} widths; give one for each")
    losses = []
    for width, share in zip(widths, shares, strict=True):
        with at_width(model, width):
            losses.append(share * loss())
    return torch.stack(losses).sum()


@contextlib.contextmanager
def at_width(model: nn.Module, width: int) -> Iterator[None]:
    """Make all tables of a model give zeros from column `width` on, within the context.

    Tables that are not wider stay as they are. What reads a table's weight instead of calling it (a graph convolution,
    a tied output) is not cut.

    Args:
        model: the model, compressed or not, of torch or torchrec.
        width: the number of columns that are kept.

    Raises:
        ValueError: the width is below 1 or above that of every table, or the model has no table.

    Example:
        >>> import torch, embcomp
        >>> model = torch.nn.Embedding(100, 16)
        >>> with embcomp.at_width(model, 4):
        ...     vectors = model(torch.tensor([3]))
        >>> torch.equal(vectors[:, :4], model.weight[3:4, :4]), int((vectors != 0).sum())
        (True, 4)
    """
    table_holders, most = _tables(model)
    _check(width, most)
    handles = [h.module.register_forward_hook(lambda _, __, output: _cut(output, width)) for h in table_holders]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def truncate_(model: nn.Module, width: int | Mapping[str, int], *, of: Method | None = None) -> CompressionReport:
    """Cut trained tables of a model to their first columns, in place; vectors keep their shape, with zeros at the end.

    Args:
        model: the model with its trained tables, not compressed.
        width: the width of all tables, or a mapping from patterns of table names to widths. Tables that are not wider
            stay as they are.
        of: the method of the narrow rows, by default `Full`: `embcomp.Full()`.

    Returns:
        The report of `compress_`.

    Raises:
        ValueError: a width is below 1 or above that of every table that its pattern matches.

    Example:
        >>> import torch, embcomp
        >>> model = torch.nn.ModuleDict({"item": torch.nn.Embedding(100, 16)})
        >>> before = model["item"].weight.detach().clone()
        >>> report = embcomp.truncate_(model, 4)
        >>> after = model["item"](torch.arange(100))
        >>> torch.equal(after[:, :4], before[:, :4]), bool((after[:, 4:] == 0).all()), report.served_nbytes
        (True, True, 1600)
    """
    method = Full() if of is None else of
    table_holders, most = _tables(model)
    held = [table for holder in table_holders for table in holder.tables.values()]
    if not isinstance(width, Mapping):
        _check(width, most)
        width = {"*": width}
    pattern_of = match({pattern: pattern for pattern in width}, [table.names for table in held])
    methods = {}
    for pattern, own in width.items():
        mine = [table for table, its in zip(held, pattern_of, strict=True) if its == pattern]
        widest = max((table.table.embedding_dim for table in mine), default=0)
        narrow = Nested(width=own, of=method)
        for table in mine:
            if table.table.embedding_dim > own or own > widest:  # the last is an error, which compress_ names
                methods[escape(table.names[0]) or "*"] = narrow
    return compress_(model, methods, init="warm")


def _tables(model: nn.Module) -> tuple[list[Holder], int]:
    """The modules that give a model its vectors, and the width of the widest table."""
    table_holders = holders(model, if_wrapped="give the module inside of it")
    widths = [held.table.embedding_dim for holder in table_holders for held in holder.tables.values()]
    if not widths:
        raise ValueError("the model has no embedding table")
    return table_holders, max(widths)


def _check(width: int, most: int) -> None:
    if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= most:
        raise ValueError(f"width must be an integer from 1 to {most}, the widest table's embedding_dim; got {width!r}")


def _cut(output: Any, width: int) -> Any:
    """The output of a table or a collection with zeros from column `width` on."""
    if isinstance(output, Tensor):
        return _zeroed(output, width)
    if isinstance(output, Mapping):  # of sequences, by feature
        return {key: _replaced(jagged, _zeroed(jagged.values(), width)) for key, jagged in output.items()}
    keys, lengths = output.keys(), output.length_per_key()
    values = [_zeroed(vectors, width) for vectors in output.values().split(lengths, dim=-1)]
    return type(output)(keys=keys, length_per_key=lengths, values=torch.cat(values, -1))


def _zeroed(vectors: Tensor, width: int) -> Tensor:
    if vectors.shape[-1] <= width:
        return vectors
    return nn.functional.pad(vectors[..., :width], (0, vectors.shape[-1] - width))


def _replaced(jagged: Any, values: Tensor) -> Any:
    """A JaggedTensor with other values."""
    return type(jagged)(values=values, lengths=jagged.lengths(), weights=jagged.weights_or_none())
