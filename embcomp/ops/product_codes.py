"""Product codes (Jégou et al. 2011): the nearest code of each part of a vector, and the vectors of codes."""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from embcomp.ops import native
from embcomp.ops.checks import float32, int64, is_recorded, readable, size
from embcomp.ops.packed_rows import read_rows

_BLOCK = 1 << 20  # values at a time
_LANES = 8  # codes that are compared at a time


def nearest_codes_reference(values: Tensor, books: Tensor, allowed: Tensor | None = None) -> Tensor:
    """`nearest_codes` by its definition, in plain torch: any device, every transform and compiler."""
    parts, codes, width = books.shape
    squares = (values.unflatten(-1, (parts, 1, width)) - books).square()
    distances = squares[..., 0]
    for place in range(1, width):  # in this order, as the compiled form adds them
        distances = distances + squares[..., place]
    if allowed is not None:
        beyond = torch.arange(codes, device=values.device) >= allowed[..., None, None]
        distances = distances.masked_fill(beyond, torch.inf)
    return distances.argmin(-1)


@torch.no_grad()
def nearest_codes(values: Tensor, books: Tensor, allowed: Tensor | None = None) -> Tensor:
    """The nearest code of each part, by Euclidean distance; of equal distances the lower code.

    Args:
        values: floats [..., dim].
        books: floats [parts, codes, dim / parts].
        allowed: int64 [...], how many codes, from the first on, each vector may have; without it all of them.

    Returns:
        int64 [..., parts].

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
        each = [nearest_codes_reference(flat[part], books, None if few is None else few[part]) for part in cut]
        return torch.cat([flat.new_empty(0, parts, dtype=torch.int64), *each]).view(*values.shape[:-1], parts)
    stride = -(-codes // _LANES) * _LANES
    planes = F.pad(books.permute(2, 0, 1), (0, stride - codes), value=torch.inf).contiguous()  # the codes side by side
    found = torch.empty(flat.shape[0], parts, dtype=torch.int64, device="cpu")
    lib.nearest_codes(
        float32("values", flat, flat.shape[0], parts * width), size(flat.shape[0]), size(parts), size(width),
        float32("books", planes, width, parts, stride), size(stride), size(codes),
        int64("allowed", few, flat.shape[0]), int64("out", found, flat.shape[0], parts),
    )  # fmt: skip
    return found.view(*values.shape[:-1], parts)


def vectors_of(codes: Tensor, books: Tensor) -> Tensor:
    """The vectors of codes, with gradients for the books: int64 [..., parts] -> [..., dim].

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
    """Vectors of packed codes, or bags of them, in plain torch.

    Args:
        packed: uint8 [lines, bytes], from `embcomp.ops.packed_rows.pack_rows`.
        bits: of the codes there, and of what `more` puts above them.
        books: float32 [parts, codes, dim / parts].
        rows: int64 [N].
        more: the upper bits of the codes of the first rows, packed alike, and how many rows these are.
        offsets: int64 [bags + 1]; without them each row comes out by itself.
        weights: float32 [N], a factor for each row.
        mode: "sum", "mean" or "max"; empty bags are zero.

    Returns:
        float32 [N, dim], or [bags, dim].

    Raises:
        IndexError: a row that the table does not have.
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
    order = torch.arange(rows.shape[0], device=rows.device)
    return F.embedding_bag(order, vectors, offsets, mode=mode, per_sample_weights=weights, include_last_offset=True)
