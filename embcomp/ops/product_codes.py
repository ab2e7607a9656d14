"""Product codes (Jégou et al. 2011): from vectors to the nearest code of each part, and from codes to vectors."""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from embcomp.ops import native
from embcomp.ops.bags import pool_in_order
from embcomp.ops.checks import float32, int64, is_recorded, readable, size
from embcomp.ops.packed_rows import read_rows

_BLOCK = 1 << 20  # values at a time
_LANES = 8  # codes that are compared at a time


def nearest_codes_reference(values: Tensor, books: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Compute `nearest_codes` by its definition, in plain torch: for any device, transform and compiler."""
    parts, codes, width = books.shape
    squares = (values.unflatten(-1, (parts, 1, width)) - books).square()
    distances = squares[..., 0]
    for column in range(1, width):  # in this order, as the compiled form adds them
        distances = distances + squares[..., column]
    if allowed is not None:
        beyond = torch.arange(codes, device=values.device) >= allowed[..., None, None]
        distances = distances.masked_fill(beyond, torch.inf)
    return distances.argmin(-1)


@torch.no_grad()
def nearest_codes(values: Tensor, books: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Find the nearest code of each part, by Euclidean distance; among equal distances the lower code.

    Args:
        values: the vectors, floats [..., dim].
        books: the code books, floats [parts, codes, dim / parts].
        allowed: the number of codes, from the first on, that each vector may have, int64 [...]; None allows all.

    Returns:
        The codes, int64 [..., parts].

    Example:
        >>> import torch
        >>> books = torch.tensor([[[0.0], [1.0]], [[5.0], [9.0]]])
        >>> nearest_codes(torch.tensor([[0.2, 8.0], [0.9, 6.0]]), books)
        tensor([[0, 1],
                [1, 0]])
    """
    if is_recorded(values) or forward_ad._current_level >= 0:
        return nearest_codes_reference(values, books, allowed)
    given = [tensor for tensor in (values, books, allowed) if tensor is not None]
    plain = all(tensor.dtype == torch.float32 for tensor in (values, books))
    lib = native.library() if plain and readable(*given) else None
    parts, codes, width = books.shape
    flat = values.reshape(-1, parts * width).contiguous()
    few = None if allowed is None else allowed.reshape(-1).contiguous()
    if lib is None:
        blocks = range(0, flat.shape[0], max(1, _BLOCK // books.numel()))
        cut = [slice(start, start + blocks.step) for start in blocks]
        each = [nearest_codes_reference(flat[block], books, None if few is None else few[block]) for block in cut]
        return torch.cat([flat.new_empty(0, parts, dtype=torch.int64), *each]).view(*values.shape[:-1], parts)
    stride = -(-codes // _LANES) * _LANES
    planes = F.pad(books.permute(2, 0, 1), (0, stride - codes), value=torch.inf).contiguous()  # the codes side by side
    nearest = torch.empty(flat.shape[0], parts, dtype=torch.int64, device="cpu")
    lib.nearest_codes(
        float32("values", flat, flat.shape[0], parts * width), size(flat.shape[0]), size(parts), size(width),
        float32("books", planes, width, parts, stride), size(stride), size(codes),
        int64("allowed", few, flat.shape[0]), int64("out", nearest, flat.shape[0], parts),
    )  # fmt: skip
    return nearest.view(*values.shape[:-1], parts)


def vectors_of(codes: Tensor, books: Tensor) -> Tensor:
    """Return the vectors of codes, with gradients for the books: int64 [..., parts] -> [..., dim].

    Example:
        >>> import torch
        >>> vectors_of(torch.tensor([1, 0]), torch.tensor([[[0.0], [1.0]], [[5.0], [9.0]]]))
        tensor([1., 5.])
    """
    parts, size, width = books.shape
    first = torch.arange(parts, device=codes.device) * size
    return F.embedding(codes + first, books.reshape(parts * size, width)).flatten(-2)


def decode(
    packed: Tensor,
    bits: tuple[int, int],
    books: Tensor,
    rows: Tensor,
    more: tuple[Tensor, int] | None = None,
    offsets: Tensor | None = None,
    weights: Tensor | None = None,
    mode: str = "sum",
) -> Tensor:
    """Decode vectors of packed codes, or bags of them, in plain torch.

    Args:
        packed: the packed codes, uint8 [lines, bytes], from `embcomp.ops.packed_rows.pack_rows`.
        bits: the bits of these codes, and the bits that `more` adds above them.
        books: the code books, float32 [parts, codes, dim / parts].
        rows: the rows to read, int64 [N].
        more: the upper bits of the codes of the first rows, packed in the same way, and the number of these rows.
        offsets: the bounds of the bags, int64 [bags + 1]; None returns each row by itself.
        weights: a factor for each row, float32 [N].
        mode: the pooling, "sum", "mean" or "max"; empty bags are zero.

    Returns:
        The vectors, float32 [N, dim], or the bags, [bags, dim].

    Raises:
        IndexError: a row is not in the table.
    """
    own, above = bits
    codes = read_rows(packed, own, len(books), rows).long()
    if more is not None:
        upper, hot = more
        higher = read_rows(upper, above, len(books), rows.clamp(max=hot - 1)).long() << own
        codes = codes + higher * (rows < hot).unsqueeze(-1)
    vectors = vectors_of(codes, books)
    if offsets is None:
        return vectors if weights is None else vectors * weights.unsqueeze(-1)
    return pool_in_order(vectors, offsets, weights, mode)
