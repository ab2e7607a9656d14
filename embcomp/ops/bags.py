"""Bags of table rows that can be differentiated as often, and in as many ways, as plain arithmetic.

torch's `embedding_bag` is fast, but has only a first derivative, in backward mode. Here the first derivative is that of
torch; with `create_graph=True` it is built from plain torch operations, so that it has derivatives itself. Under
torch.func (jvp, vmap, hessian) and in forward mode the bag itself is built from plain operations.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

_MODES = {"sum": 0, "mean": 1, "max": 2}
_NO_PADDING = -1


def pool_rows(
    table: Tensor,
    rows: Tensor,
    offsets: Tensor,
    weights: Tensor | None = None,
    mode: str = "sum",
    sparse: bool = False,
) -> Tensor:
    """Pool rows as `torch.nn.functional.embedding_bag` does with `include_last_offset`.

    Args:
        table: the table, floats [rows, dim].
        rows: the rows to read, integers [N].
        offsets: the bounds of the bags, integers [B + 1].
        weights: a weight for each read row, [N] in the table's dtype; only with mode "sum".
        mode: the pooling, "sum", "mean" or "max".
        sparse: True for a sparse gradient of the table.

    Returns:
        The pooled rows, [B, dim].

    Example:
        >>> import torch
        >>> table = torch.tensor([[1.0], [10.0], [100.0]])
        >>> pool_rows(table, torch.tensor([0, 1, 2]), torch.tensor([0, 1, 3]))
        tensor([[  1.],
                [110.]])
    """
    weights = None if weights is None else weights.contiguous()  # torch misreads others where rows are in no bag
    if mode != "max" and transformed():
        return pool_plainly(table, rows, offsets, weights, mode)
    learns = torch.is_grad_enabled() and (table.requires_grad or (weights is not None and weights.requires_grad))
    if learns and eager(table, rows, offsets, weights):
        return _Bags.apply(table, rows, offsets, weights, mode, sparse)  # pyright: ignore[reportReturnType]
    return F.embedding_bag(
        rows, table, offsets, mode=mode, sparse=sparse, per_sample_weights=weights, include_last_offset=True
    )


def pool_in_order(vectors: Tensor, offsets: Tensor, weights: Tensor | None, mode: str) -> Tensor:
    """Pool vectors [N, dim], each read once and in order, like `pool_rows`; without derivatives of its own."""
    order = torch.arange(vectors.shape[0], device=vectors.device)
    weights = None if weights is None else weights.contiguous()  # torch misreads others where rows are in no bag
    return F.embedding_bag(order, vectors, offsets, mode=mode, per_sample_weights=weights, include_last_offset=True)


def transformed() -> bool:
    """Return whether torch.func or forward mode is active, which support plain operations only."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0  # pyright: ignore


def eager(*tensors: Tensor | None) -> bool:
    """Return whether all tensors are plain, and operations on them are done rather than recorded."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore
        return False
    return all(tensor is None or type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors)


def pool_plainly(table: Tensor, rows: Tensor, offsets: Tensor, weights: Tensor | None, mode: str = "sum") -> Tensor:
    """Pool rows like `pool_rows`, by operations that torch differentiates in every way; not for mode "max"."""
    each = F.embedding(rows, table)
    if weights is not None:
        each = each * weights.unsqueeze(-1)
    bags = offsets.shape[-1] - 1
    pooled = each.new_zeros(bags + 1, table.shape[-1]).index_add(0, bag_of_rows(rows, offsets), each)[:bags]
    return pooled / _lengths(offsets).to(pooled.dtype) if mode == "mean" else pooled


def bag_of_rows(rows: Tensor, offsets: Tensor) -> Tensor:
    """The index of the bag of each row, int64 [N]; as in torch, rows after the last offset are in the last bag."""
    order = torch.arange(rows.shape[-1], device=rows.device)
    return torch.searchsorted(offsets[1:-1].contiguous().long(), order, right=True)


def _lengths(offsets: Tensor) -> Tensor:
    return offsets.diff().clamp(min=1).unsqueeze(-1)


class _Bags(torch.autograd.Function):
    """An `embedding_bag` whose derivative has derivatives."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, rows: Tensor, offsets: Tensor, weights: Tensor | None, mode: str, sparse: bool
    ) -> Tensor:
        ctx.mode, ctx.sparse = _MODES[mode], sparse
        rows, offsets = rows.contiguous(), offsets.contiguous()  # it reads them so, whatever their strides are
        out, *bag_tensors = torch._embedding_bag(  # pyright: ignore[reportPrivateImportUsage]
            table, rows, offsets, False, ctx.mode, sparse, weights, True, _NO_PADDING
        )
        ctx.shape = table.shape
        # The rows may change before the backward pass, as with torch's own bags, unless the weights learn from them.
        ctx.save_for_backward(table if ctx.needs_input_grad[3] else None, rows, offsets, weights, *bag_tensors)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        table, rows, offsets, weights, bags, sizes, largest = ctx.saved_tensors
        of_table, of_weights = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
        if torch.is_grad_enabled():  # create_graph=True
            if ctx.mode == _MODES["max"]:
                return _of_largest(grad, largest, ctx.shape), None, None, None, None, None
            if ctx.mode == _MODES["mean"]:
                grad = grad / _lengths(offsets).to(grad.dtype)
            each = each_gradient(grad, rows, offsets)
            weighted = each if weights is None else each * weights.unsqueeze(-1)
            summed = grad.new_zeros(ctx.shape).index_add(0, rows.long(), weighted)
            return summed, None, None, (each * F.embedding(rows, table)).sum(1) if of_weights else None, None, None
        grads: list[Tensor | None] = [None] * 6
        if of_table:
            grads[0] = torch.ops.aten._embedding_bag_backward(
                grad, rows, offsets, bags, sizes, largest, ctx.shape[0], False, ctx.mode, ctx.sparse, weights,
                _NO_PADDING,
            )  # fmt: skip
        if of_weights:
            grads[3] = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                grad, table, rows, offsets, bags, ctx.mode, _NO_PADDING
            )
        return tuple(grads)


def each_gradient(grad: Tensor, rows: Tensor, offsets: Tensor) -> Tensor:
    """The gradient of each row's bag, [N, dim]."""
    padded = torch.cat([grad, grad.new_zeros(1, grad.shape[1])])
    return padded.index_select(0, bag_of_rows(rows, offsets))


def _of_largest(grad: Tensor, largest: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of a table whose entry (largest[b, d], d) was the maximum of bag b; -1 for an empty bag."""
    columns = torch.arange(shape[1], device=grad.device).expand_as(largest)
    chosen = grad.masked_fill(largest < 0, 0.0)
    return grad.new_zeros(shape).index_put((largest.clamp(min=0).long(), columns), chosen, accumulate=True)
