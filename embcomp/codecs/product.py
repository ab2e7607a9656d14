"""The codec of product codes, with learned code books."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from embcomp.codecs.base import Codec, Coded, Coding
from embcomp.ops.kmeans import kmeans
from embcomp.ops.packed_rows import pack_rows, packed_nbytes
from embcomp.ops.product_codes import decode, nearest_codes, vectors_of
from embcomp.ops.sinkhorn import balance

VALUE_BYTES = 4  # books are served as float32
_SAMPLE = 1 << 18  # values that are looked at for the size of the rows
PER_CODE = 256  # rows that k-means sees for each code, as faiss takes
_DRAWN = 64  # of them where they are drawn


def bits_of(codes: int) -> int:
    """The number of bits of a code below `codes`.

    Example:
        >>> [bits_of(codes) for codes in (1, 2, 16, 17, 256)]
        [1, 1, 4, 5, 8]
    """
    return max(1, (codes - 1).bit_length())


@dataclass(frozen=True)
class Product(Coding):
    """A coding with a code for each part of a row, the index of a vector in the part's book (Jégou et al. 2011).

    Attributes:
        parts: the number of parts of a row.
        codes: the number of vectors in the book of a part.
        hot: the number of first rows that choose among all codes; None for all rows.
        cold_codes: the number of codes that the other rows choose from.
        balanced: True to fit books so that all codes are used about equally often.
    """

    parts: int
    codes: int
    hot: int | None = None
    cold_codes: int = 0
    balanced: bool = False

    @property
    def bits(self) -> tuple[int, int]:
        """The bits of each code that all rows have, and the further bits that hot rows have."""
        bits = bits_of(self.codes)
        own = bits if self.hot is None else bits_of(self.cold_codes)
        return own, bits - own

    def nbytes(self, rows: int, dim: int, float_bytes: int) -> int:
        return self.codes * dim * float_bytes

    def served_nbytes(self, rows: int, dim: int) -> int:
        own, more = self.bits
        above = packed_nbytes(self.hot or 0, self.parts, more) if more else 0
        packed = packed_nbytes(rows, self.parts, own) + above
        return packed + self.codes * dim * VALUE_BYTES

    def decode(
        self,
        packed: Tensor,
        dim: int,
        constants: Mapping[str, Tensor],
        rows: Tensor,
        offsets: Tensor | None = None,
        weights: Tensor | None = None,
        mode: str = "sum",
    ) -> Tensor:
        more = None if "more" not in constants else (constants["more"], self.hot or 0)
        return decode(packed, self.bits, constants["books"], rows, more, offsets, weights, mode)

    def module(self, rows: int, dim: int, device: Any = None, dtype: torch.dtype | None = None) -> "ProductCodec":
        return ProductCodec(self, rows, dim, device, dtype)


class ProductCodec(Codec):
    """A codec that replaces each part of a row by the nearest vector of its book (Chen et al. 2020, arXiv 1908.09756).

    Books are in units of the rows, mean(rows) + deviation(rows) * books, so that they follow rows that grow from a
    small start, and learn at a pace that does not depend on the size of the rows; no gradient goes through the two
    moments. The gradient of a vector goes straight through to its row, and also to the book vectors it consists of
    (DPQ-VQ).

    Attributes:
        books: the books of the parts, one below the other, [parts * codes, dim / parts].
    """

    def __init__(
        self, product: Product, rows: int, dim: int, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(product, rows, dim)
        self.product = product
        shape = (product.parts * product.codes, dim // product.parts)
        self.books = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.every = max(1, rows * dim // _SAMPLE)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the books to the best ones for normally distributed rows, scaled to the deviation of these."""
        if not self.books.is_meta:
            product, width = self.product, self.books.shape[1]
            cold = product.codes if product.hot is None else product.cold_codes
            book = torch.cat([_of_normal(cold, width, 0), _of_normal(product.codes - cold, width, 1)])
            self.books.copy_(book.repeat(product.parts, 1))

    def measure(self, stored: Tensor, first: int = 0) -> Tensor:
        """Measure the number, the sum and the sum of squares of the values, [3]; a large table is sampled."""
        values = stored.detach()[-first % self.every :: self.every].double()
        total = values.sum()
        return torch.stack([torch.ones_like(total) * values.numel(), total, values.square().sum()])

    @staticmethod
    def _moments(measured: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the deviation of the rows, float64."""
        count, total, squares = measured.unbind()
        mean = total / count.clamp(min=1.0)
        return mean, (squares / count.clamp(min=1.0) - mean.square()).clamp(min=0.0).sqrt()

    def books_of(self, measured: Tensor) -> Tensor:
        """Return the books in the units of the vectors, float32 (or float64) [parts, codes, dim / parts]."""
        kind = torch.promote_types(self.books.dtype, torch.float32)
        mean, deviation = self._moments(measured)
        books = mean.to(kind) + deviation.to(kind) * self.books.to(kind)
        return books.unflatten(0, (self.product.parts, self.product.codes))

    def forward(self, stored: Tensor, rows: Tensor, measured: Tensor | None) -> Tensor:
        assert measured is not None
        books = self.books_of(measured)
        values = stored.to(books.dtype)
        codes = nearest_codes(values.detach(), books.detach(), self._allowed(rows))
        vectors = vectors_of(codes, books) + (values - values.detach())
        return vectors.to(stored.dtype)

    def _allowed(self, rows: Tensor) -> Tensor | None:
        product = self.product
        if product.hot is None:
            return None
        return torch.where(rows < product.hot, product.codes, product.cold_codes)

    @torch.no_grad()
    def fit_(self, stored: Tensor, values: Tensor | None = None) -> None:
        """Run k-means on each part: cold rows give the codes of all rows, hot rows give the further codes."""
        product, width = self.product, self.books.shape[1]
        hot, cold = (0, product.codes) if product.hot is None else (product.hot, product.cold_codes)
        mean, deviation = (moment.float() for moment in self._moments(self.measure(stored)))
        for part, book in enumerate(self.books.view(product.parts, product.codes, width)):
            values = stored[:, part * width : (part + 1) * width].float().sub(mean).div(deviation.clamp(min=1e-30))
            books = [
                _centroids(own, codes, product.balanced)
                for own, codes in ((values[hot:], cold), (values[:hot], product.codes - cold))
            ]
            book.copy_(torch.cat(books))

    @torch.no_grad()
    def code(self, stored: Tensor) -> Coded:
        books = self.books_of(self.measure(stored))
        rows = torch.arange(stored.shape[0], device=stored.device)
        codes = nearest_codes(stored.to(books.dtype), books, self._allowed(rows))
        own, more = self.product.bits
        constants = {"books": books.float()}
        if more and self.product.hot:
            constants["more"] = pack_rows((codes[: self.product.hot] >> own).to(torch.uint8), more)
        return Coded((codes & (2**own - 1)).to(torch.uint8), own, constants)

    def extra_repr(self) -> str:
        return f"parts={self.product.parts}, codes={self.product.codes}"


@functools.cache
def _of_normal(codes: int, width: int, seed: int) -> Tensor:
    """The codes of normally distributed vectors, rescaled to deviation 1: float32 [codes, width]."""
    with torch.device("cpu"):
        draw = torch.Generator().manual_seed(seed)
        vectors = torch.randn(_DRAWN * codes, width, generator=draw, dtype=torch.float32)
        centroids = _centroids(vectors, codes)
        if codes > 1:
            centroids = (
                centroids / centroids[nearest_codes(vectors, centroids.unsqueeze(0)).squeeze(1)].square().mean().sqrt()
            )
        return centroids


def _centroids(vectors: Tensor, codes: int, balanced: bool = False) -> Tensor:
    """The centroids of k-means, float32 [codes, width]; with fewer different vectors, the first one is repeated."""
    if not codes:
        return vectors[:0]
    most = PER_CODE * codes
    if len(vectors) > most:
        chosen = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0), device="cpu")[:most]
        vectors = vectors[chosen.to(vectors.device)]
    vectors = vectors.contiguous()
    centroids = kmeans(vectors, codes, iterations=25, tolerance=1e-4, seed=0, fewer=True)
    if balanced:
        centroids = balance(vectors, centroids)
    return torch.cat([centroids, centroids[:1].expand(codes - len(centroids), -1)])
