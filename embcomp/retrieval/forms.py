"""The forms of coded vectors: codes on grids with a matrix, or product codes."""

import abc
import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp.ops.code_search import Found, code_search, search_blocks
from embcomp.ops.grid import best_step, levels
from embcomp.ops.packed_columns import PackedColumns, groups_nbytes
from embcomp.ops.packing import bits_for
from embcomp.ops.product_codes import nearest_codes, vectors_of

_STEPS = 256  # sizes that a row may have
_FEW, _ROUNDS = 64, 20  # sizes of 6 bits, and the rounds of k-means that find them
_NOTHING = 1e-30  # the size of a row of zeros: searches divide by sizes


def quantized_scales(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise non-negative row sizes, float32 [rows], to a byte each, uint8 [rows], with a table, float32 [256].

    The sizes of the table rise in equal ratios from the smallest row to the largest, at most by a factor of 10,000;
    byte 0 is for rows of size 0.
    """
    most = scales.max().clamp(min=_NOTHING * 1e4)
    least = torch.where(scales > 0, scales, most).min().clamp(min=most * 1e-4)
    low, high = float(least.double().log()), float(most.double().log())
    steps = torch.linspace(low, high, _STEPS - 1, dtype=torch.float64, device="cpu").exp().float()
    places = (scales.clamp(min=float(least)).double().log() - low) / max(high - low, 1e-12) * (_STEPS - 2)
    places = torch.where(scales > 0, places.round().clamp(0, _STEPS - 2) + 1, 0.0)
    return places.to(torch.uint8), torch.cat([steps.new_tensor([_NOTHING]), steps]).to(scales.device)


def packed_scales(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise non-negative row sizes, float32 [rows], to 6 bits each, packed uint8, with a table, float32 [64].

    The sizes of the table are those of k-means, begun at equal ratios; index 0 is for rows of size 0.
    """
    some = scales[scales > 0].double() if bool((scales > 0).any()) else scales.new_ones(1, dtype=torch.float64)
    low, high = (float(each.log()) for each in (some.min().clamp(min=float(some.max()) * 1e-3), some.max()))
    centers = torch.linspace(low, high, _FEW - 1, dtype=torch.float64, device=some.device).exp()
    for _ in range(_ROUNDS):
        near = torch.bucketize(some, (centers[1:] + centers[:-1]) / 2)
        sums = torch.zeros_like(centers).index_add_(0, near, some)
        counts = near.bincount(minlength=len(centers))
        centers = torch.where(counts > 0, sums / counts.clamp(min=1), centers).sort().values
    places = torch.bucketize(scales.double(), (centers[1:] + centers[:-1]) / 2) + 1
    places = torch.where(scales > 0, places, 0).to(torch.uint8).unsqueeze(1)
    packed = PackedColumns.of(places, ((1, bits_for(_FEW)),))
    return packed.data, torch.cat([centers.new_tensor([_NOTHING]), centers]).float()


class Form(abc.ABC):
    """Coded vectors as they are held in memory and in files. Subclasses are frozen dataclasses.

    A query is first transformed once into the space of the codes (`asked`), and then compared with them.
    """

    codes: PackedColumns
    width_: int

    def __post_init__(self) -> None:
        # Sums of a matrix product depend on the order in memory in their last bit, and a file keeps one order.
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            if isinstance(value := getattr(self, field.name), Tensor):
                object.__setattr__(self, field.name, value.contiguous())

    @property
    def rows(self) -> int:
        """The number of vectors."""
        return self.codes.rows

    @property
    def width(self) -> int:
        """The number of values of a vector."""
        return self.width_

    @property
    def packed(self) -> PackedColumns:
        """The packed codes."""
        return self.codes

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors, by name."""
        tensors = {}
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            if isinstance(value, PackedColumns):
                tensors[field.name] = value.data
            elif isinstance(value, Tensor):
                tensors[field.name] = value
        return tensors

    @abc.abstractmethod
    def decode(self, rows: Tensor) -> Tensor:
        """Decode the vectors of rows, int64 [n] -> float32 [n, width]."""

    @abc.abstractmethod
    def asked(self, queries: Tensor) -> Tensor:
        """Transform queries into the space of the codes: float32 [Q, width] -> [Q, columns]."""

    @abc.abstractmethod
    def coded(self, queries: Tensor) -> Tensor:
        """Transform queries like `asked`, after coding them in as many bits as the vectors and decoding them again."""

    @abc.abstractmethod
    def scores(self, asked: Tensor, rows: Tensor, scaled: bool = True) -> Tensor:
        """Return products of transformed queries with rows, float32 [Q, n]; unless `scaled`, of rows of one size."""

    @abc.abstractmethod
    def search(self, asked: Tensor, k: int, scaled: bool = True) -> Found:
        """Return the k rows of largest score."""


@dataclass(frozen=True)
class GridForm(Form):
    """Vectors coded on grids: vector i is sizes[scales[i]] * (codes[i] - middle) @ basis.

    Attributes:
        codes: the packed codes.
        basis: the matrix, floats, or int8 with `factors`, [columns, width]; without a rotation the factor of each
            column, [columns].
        scales: the index of each row's size, packed in 6 bits or 8, uint8; None if all sizes are 1.
        sizes: the sizes, float32 [64] or [256].
        width_: the number of values of a vector.
        levels: the number of signs for each value; those of recurrent sign codes are side by side.
        factors: the factor of each row of an int8 `basis`, float16 [columns].
    """

    codes: PackedColumns
    basis: Tensor
    scales: Tensor | None
    sizes: Tensor | None
    width_: int
    levels: int = 1
    factors: Tensor | None = None

    @property
    def matrix(self) -> Tensor:
        """The basis as float32."""
        return self.basis.float() if self.factors is None else self.basis.float() * self.factors.float().unsqueeze(1)

    def scale(self, rows: Tensor | None = None) -> Tensor | None:
        """Return the size of each row, or of some rows."""
        if self.scales is None or self.sizes is None:
            return None
        held = PackedColumns(self.scales, self.rows, ((1, bits_for(len(self.sizes))),))
        every = torch.arange(self.rows, device=self.scales.device)
        return self.sizes[held.read(every if rows is None else rows).squeeze(1).long()]

    def check_scales(self) -> None:
        """Raise ValueError unless there is a size for each row."""
        if self.scales is not None and self.sizes is not None:
            bits = bits_for(len(self.sizes))
            expected = self.rows if bits == 8 else groups_nbytes(self.rows, ((1, bits),))
            if self.scales.shape != (expected,):
                raise ValueError(f"{list(self.scales.shape)} bytes of sizes for {self.rows} rows of {bits} bits")

    def _scaled(self, rows: Tensor, scaled: bool = True) -> Tensor:
        values, scale = self.codes.centered(rows), self.scale(rows)
        return values * scale.unsqueeze(1) if scaled and scale is not None else values

    def decode(self, rows: Tensor) -> Tensor:
        return self._on_basis(self._scaled(rows))

    def _on_basis(self, values: Tensor) -> Tensor:
        basis = self.matrix
        if basis.dim() == 2:
            return values @ basis
        values = (values * basis).unflatten(1, (self.levels, -1)).sum(1)
        return F.pad(values, (0, self.width - values.shape[1]))

    def asked(self, queries: Tensor) -> Tensor:
        basis = self.matrix
        if basis.dim() == 2:
            return queries @ basis.T
        return queries[:, : len(basis) // self.levels].repeat(1, self.levels) * basis

    @property
    def is_signs(self) -> bool:
        """True if every column holds a sign."""
        return all(bits == 1 for _, bits in self.codes.groups)

    def signs(self, queries: Tensor) -> Tensor:
        """Return the recurrent signs of queries, -1 and 1, [Q, columns], coded like the rows, level by level."""
        signs, left, each = [], F.normalize(queries), self.codes.columns // self.levels
        for level in range(self.levels):
            chosen = slice(level * each, (level + 1) * each)
            sign = torch.where(self.asked(left)[:, chosen] < 0, -1.0, 1.0)
            alone = F.pad(sign, (level * each, (self.levels - level - 1) * each))
            signs.append(sign)
            left = left - self._on_basis(alone / 2)
        return torch.cat(signs, 1)

    def of_signs(self, signs: Tensor, queries: Tensor) -> Tensor:
        """Transform the queries that signs stand for into the space of the codes."""
        decoded = self._on_basis(signs / 2)
        factor = (queries * decoded).sum(1, keepdim=True) / decoded.square().sum(1, keepdim=True)
        return self.asked(decoded * factor.nan_to_num(0.0))

    def coded(self, queries: Tensor) -> Tensor:
        if self.levels > 1:
            return self.of_signs(self.signs(queries), queries)
        coded, start, asked = [], 0, self.asked(queries)
        for columns, bits in self.codes.groups:
            values = asked[:, start : start + columns]
            step = best_step(values, bits)
            coded.append((levels(values, step, bits) + 0.5) * step)
            start += columns
        return torch.cat(coded, 1)

    def scores(self, asked: Tensor, rows: Tensor, scaled: bool = True) -> Tensor:
        return asked @ self._scaled(rows, scaled).T

    def search(self, asked: Tensor, k: int, scaled: bool = True) -> Found:
        return code_search(self.codes, self.scale() if scaled else None, asked, k)


@dataclass(frozen=True)
class ProductForm(Form):
    """Vectors of product codes: vector i is the concatenation of its code vectors, @ basis.

    Attributes:
        codes: the packed codes, a column for each part.
        books: the code books, float16 [parts, codes, columns of a part].
        basis: the matrix, floats [columns, width], or None.
        width_: the number of values of a vector.
    """

    codes: PackedColumns
    books: Tensor
    basis: Tensor | None
    width_: int

    def _values(self, rows: Tensor) -> Tensor:
        return vectors_of(self.codes.read(rows).long(), self.books.float())

    def decode(self, rows: Tensor) -> Tensor:
        values = self._values(rows)
        if self.basis is not None:
            return values @ self.basis.float()
        return F.pad(values, (0, self.width - values.shape[1]))

    def asked(self, queries: Tensor) -> Tensor:
        if self.basis is not None:
            return queries @ self.basis.float().T
        return queries[:, : self.books.shape[0] * self.books.shape[2]]

    def coded(self, queries: Tensor) -> Tensor:
        books = self.books.float()
        return vectors_of(nearest_codes(self.asked(queries).contiguous(), books), books)

    def scores(self, asked: Tensor, rows: Tensor, scaled: bool = True) -> Tensor:
        return asked @ self._values(rows).T

    def search(self, asked: Tensor, k: int, scaled: bool = True) -> Found:
        return search_blocks(self._values, self.rows, asked, k)
