"""The ways to code vectors: their bytes, and how they are fitted."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp.ops.grid import best_step, levels
from embcomp.ops.kmeans import kmeans, no_progress
from embcomp.ops.packed_columns import PackedColumns, groups_nbytes
from embcomp.ops.packing import bits_for
from embcomp.ops.product_codes import nearest_codes
from embcomp.retrieval.forms import Form, GridForm, ProductForm, quantized_scales
from embcomp.retrieval.rotations import ROTATIONS, Rotation, directions, of_products, sample

Progress = Callable[[int, int, str], None]
Size = Literal["closest", "unbiased"]
SIZES = ("closest", "unbiased")
_BLOCK = 1 << 12  # rows at a time: they stay in the cache
FLOAT16, FLOAT32 = 2, 4  # bytes of a matrix's values, and of other constants
SIZES_NBYTES = 256 * FLOAT32
# The least mean square error of a grid for values of a normal distribution with deviation 1, by bits (Max 1960).
_LOST = (1.0, 0.3634, 0.1188, 0.03744, 0.01154, 0.00349, 0.00104, 0.000305, 0.0000885)
_ITERATIONS, _TOLERANCE = 25, 1e-3  # of k-means
_POINTS = 1 << 16  # vectors that code books are learned from


@dataclass(frozen=True, kw_only=True)
class Way(abc.ABC):
    """A way to code vectors.

    Attributes:
        width: the number of values of a vector to keep, None for all: the first ones, or those along the directions of
            `rotation`.
        rotation: the directions to code along, see `embcomp.retrieval.compress`.
    """

    width: int | None = None
    rotation: Rotation = None

    def __post_init__(self) -> None:
        if self.rotation not in ROTATIONS:
            raise ValueError(f"rotation must be one of {', '.join(map(repr, ROTATIONS))}, got {self.rotation!r}")
        if self.width is not None and self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")

    def columns(self, dim: int) -> int:
        """Return how many values of each vector are kept."""
        return dim if self.width is None else self.width

    def check(self, rows: int, dim: int) -> None:
        """Raise ValueError if vectors of this width, or so few vectors, cannot be coded."""
        if self.columns(dim) > dim:
            raise ValueError(f"width={self.width} values cannot be kept of vectors of {dim}: lower it")

    @abc.abstractmethod
    def nbytes(self, rows: int, dim: int) -> int:
        """Return the bytes of so many coded vectors of `dim` values, constants included."""

    @abc.abstractmethod
    def fit(
        self, vectors: Tensor, queries: Tensor | None = None, seed: int = 0, progress: Progress = no_progress
    ) -> Form:
        """Code vectors, float32 [rows, dim]; `queries` [m, dim], a sample, tells which directions matter."""

    def _basis_nbytes(self, dim: int, levels: int = 1) -> int:
        columns = self.columns(dim) * levels
        return FLOAT32 * columns if self.rotation is None else FLOAT16 * columns * dim

    def _turned(self, vectors: Tensor, queries: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
        """The values to code, [rows, columns], and the basis of these: [columns, dim] or [columns]."""
        columns = self.columns(vectors.shape[1])
        if self.rotation == "svd" and queries is not None:
            first, second = of_products(vectors, queries, columns, seed)
            return vectors @ second.T, first
        basis = directions(vectors, self.rotation, columns, seed)
        if basis is None:
            return vectors[:, :columns], vectors.new_ones(columns)
        return vectors @ basis.T, basis


@dataclass(frozen=True, kw_only=True)
class Sized(Way):
    """A way with a size for each row.

    Attributes:
        size: "closest" for the size that brings the decoded vector closest to the vector; "unbiased" for the one with
            which their product is the square of the vector: the closest one is too short, by more for rows that lose
            more, which puts these rows too low in a ranking (Gao and Long 2024, arXiv 2405.12497, section 3.2).
    """

    size: Size = "closest"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size not in SIZES:
            raise ValueError(f"size must be 'closest' or 'unbiased', got {self.size!r}")

    def sizes_of(self, vectors: Tensor, decoded: Tensor) -> Tensor:
        """Return the size of each row, [rows, 1], from vectors and decoded vectors of size 1."""
        return least_squares(vectors, decoded) if self.size == "closest" else unbiased(vectors, decoded)


@dataclass(frozen=True, kw_only=True)
class Grid(Sized):
    """A way with a symmetric grid of `bits` bits without a zero (`embcomp.ops.grid`).

    Attributes:
        bits: the bits of a value, 1 to 8.
        scale: "row" for a step of each row, stored as a byte (with rotation="svd" times the spread of the column);
            "column" or "table" for shared steps.
    """

    bits: int
    scale: Literal["row", "column", "table"] = "row"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be 1 to 8, got {self.bits!r}")
        if self.scale not in ("row", "column", "table"):
            raise ValueError(f"scale must be 'row', 'column' or 'table', got {self.scale!r}")
        if self.size == "unbiased" and self.scale != "row":
            raise ValueError(f"size='unbiased' needs a size for each row: take scale='row', not {self.scale!r}")

    def nbytes(self, rows: int, dim: int) -> int:
        codes = groups_nbytes(rows, ((self.columns(dim), self.bits),))
        return codes + self._basis_nbytes(dim) + (rows + SIZES_NBYTES if self.scale == "row" else 0)

    def fit(
        self, vectors: Tensor, queries: Tensor | None = None, seed: int = 0, progress: Progress = no_progress
    ) -> Form:
        values, basis = self._turned(vectors, queries, seed)
        scales = sizes = None
        if self.scale == "row":
            if self.rotation == "svd":  # columns of falling spread, which one step cannot fit
                spread = sample(values, seed).square().mean(0).sqrt().clamp(min=1e-30)
                values, basis = values / spread, basis * spread.unsqueeze(1)
            steps = torch.cat([best_step(block, self.bits) for block in values.split(_BLOCK)]).squeeze(1)
            scales, sizes = quantized_scales(torch.where(values.any(1), steps, 0.0))
            step = sizes[scales.long()].unsqueeze(1)
        else:
            columns = sample(values, seed).T
            step = best_step(columns if self.scale == "column" else columns.reshape(1, -1), self.bits).view(1, -1)
            step = step.expand(1, values.shape[1])
            basis = basis * (step if basis.dim() == 1 else step.T).squeeze(0)
        codes = levels(values, step, self.bits) + 2 ** (self.bits - 1)
        packed = PackedColumns.of(codes.to(torch.uint8), ((values.shape[1], self.bits),))
        if self.size == "unbiased":
            coded = GridForm(packed, held(basis), None, None, vectors.shape[1]).decode(torch.arange(len(vectors)))
            scales, sizes = quantized_scales(unbiased(vectors, coded).squeeze(1))
        return GridForm(packed, held(basis), scales, sizes, vectors.shape[1])


@dataclass(frozen=True, kw_only=True)
class Spread(Sized):
    """A way with grids of 0 to 8 bits per column, `row_bits` together: columns of more variance get more bits.

    It is reverse water-filling: each further bit goes to the column where it reduces the squared error most. It needs
    directions that differ in spread: `rotation="svd"`.

    Attributes:
        row_bits: the bits of a row.
    """

    row_bits: int
    rotation: Rotation = "svd"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.row_bits, bool) or not isinstance(self.row_bits, int) or self.row_bits < 1:
            raise ValueError(f"row_bits must be at least 1, got {self.row_bits!r}")

    def check(self, rows: int, dim: int) -> None:
        super().check(rows, dim)
        if self.row_bits > 8 * self.columns(dim):
            raise ValueError(f"row_bits={self.row_bits} do not fit {self.columns(dim)} values of 8 bits: lower it")

    def nbytes(self, rows: int, dim: int) -> int:
        """Return an upper bound: columns without bits need no direction, and each group of columns ends at a byte."""
        together = min(8, self.row_bits)  # widths
        basis = FLOAT16 * self.columns(dim) * dim
        return -(-rows * self.row_bits // 8) + 16 * together + basis + rows + SIZES_NBYTES

    def fit(
        self, vectors: Tensor, queries: Tensor | None = None, seed: int = 0, progress: Progress = no_progress
    ) -> Form:
        values, basis = self._turned(vectors, queries, seed)
        size = torch.linalg.vector_norm(values, dim=1, keepdim=True)
        codes, order, bits, steps = self._grids(values, size, seed)
        size = least_squares(values[:, order], (codes + 0.5) * steps)
        codes, order, bits, steps = self._grids(values, size, seed)  # now with the sizes that fit the codes
        size = least_squares(values[:, order], (codes + 0.5) * steps)
        groups = tuple((bits.count(each), each) for each in sorted(set(bits), reverse=True))
        half = torch.tensor([2.0 ** (each - 1) for each in bits], device=values.device)
        packed = PackedColumns.of((codes + half).to(torch.uint8), groups)
        turned = basis if basis.dim() == 2 else torch.eye(len(basis), vectors.shape[1], device=basis.device)
        matrix = held(turned[order] * steps.T)
        if self.size == "unbiased":
            size = unbiased(vectors, (codes + 0.5) @ matrix.float())
        scales, sizes = quantized_scales(size.squeeze(1))
        return GridForm(packed, matrix, scales, sizes, vectors.shape[1])

    def _grids(self, values: Tensor, size: Tensor, seed: int) -> tuple[Tensor, Tensor, list[int], Tensor]:
        """The levels of the columns that have bits, the indices of these columns, their bits and their steps."""
        unit = values / size.clamp(min=1e-30)
        few = sample(unit, seed)
        each = spread_bits(few.square().mean(0), self.row_bits)
        order = each.argsort(descending=True, stable=True)[: int((each > 0).sum())]
        bits: list[int] = each[order].tolist()
        order = order.to(values.device)
        steps = [best_step(few[:, j].reshape(1, -1), b) for j, b in zip(order.tolist(), bits, strict=True)]
        step = torch.cat(steps).view(1, -1)
        half = torch.tensor([2.0 ** (b - 1) for b in bits], device=values.device)
        return torch.minimum(torch.maximum((unit[:, order] / step).floor(), -half), half - 1), order, bits, step


@dataclass(frozen=True, kw_only=True)
class Signs(Sized):
    """A way with recurrent signs: of the vector, then of the remainder, and so on: BEBR's recursion without a network.

    Attributes:
        levels: the number of signs for each value, 1 to 4.
    """

    levels: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.levels, bool) or not isinstance(self.levels, int) or not 1 <= self.levels <= 4:
            raise ValueError(f"levels must be 1 to 4, got {self.levels!r}")

    def nbytes(self, rows: int, dim: int) -> int:
        codes = groups_nbytes(rows, ((self.columns(dim) * self.levels, 1),))
        return codes + self._basis_nbytes(dim, self.levels) + rows + SIZES_NBYTES

    def fit(
        self, vectors: Tensor, queries: Tensor | None = None, seed: int = 0, progress: Progress = no_progress
    ) -> Form:
        left = F.normalize(vectors)
        decoded = torch.zeros_like(left)
        signs, bases = [], []
        for level in range(self.levels):
            values, basis = self._turned(left, queries, seed + level)
            sign = torch.where(values < 0, -1.0, 1.0)
            weight = float(values.abs().mean())
            signs.append(sign)
            bases.append(2 * weight * basis)  # codes 0 and 1 less their middle are half of that
            step = weight * (sign @ basis if basis.dim() == 2 else F.pad(sign, (0, left.shape[1] - sign.shape[1])))
            decoded, left = decoded + step, left - step
            progress(level + 1, self.levels, f"left {float(left.square().sum(1).mean()):.4f} of the squares")
        scales, sizes = quantized_scales(self.sizes_of(vectors, decoded).squeeze(1))
        codes = (torch.cat(signs, 1) > 0).to(torch.uint8)
        packed = PackedColumns.of(codes, ((codes.shape[1], 1),))
        return GridForm(packed, held(torch.cat(bases)), scales, sizes, vectors.shape[1], self.levels)


@dataclass(frozen=True, kw_only=True)
class Product(Way):
    """A way with a code for each part of the vector, and code vectors by k-means (Jégou et al. 2011).

    Attributes:
        parts: the number of equal parts of a vector.
        codes: the number of code vectors of a part, 2 to 256.
    """

    parts: int
    codes: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.parts, bool) or not isinstance(self.parts, int) or self.parts < 1:
            raise ValueError(f"parts must be at least 1, got {self.parts!r}")
        if isinstance(self.codes, bool) or not isinstance(self.codes, int) or not 2 <= self.codes <= 256:
            raise ValueError(f"codes must be 2 to 256, got {self.codes!r}")

    def check(self, rows: int, dim: int) -> None:
        super().check(rows, dim)
        if self.columns(dim) % self.parts:
            raise ValueError(f"parts={self.parts} do not divide {self.columns(dim)} values: choose a divisor")
        if rows < self.codes:
            raise ValueError(f"{rows} vectors are fewer than codes={self.codes}: choose fewer codes")

    def nbytes(self, rows: int, dim: int) -> int:
        basis = 0 if self.rotation is None else self._basis_nbytes(dim)
        codes = groups_nbytes(rows, ((self.parts, bits_for(self.codes)),))
        return codes + self.codes * self.columns(dim) * FLOAT16 + basis

    def fit(
        self, vectors: Tensor, queries: Tensor | None = None, seed: int = 0, progress: Progress = no_progress
    ) -> Form:
        values, basis = self._turned(vectors, queries, seed)
        few = sample(values, seed, max(_POINTS, 4 * self.codes))
        books = []
        for part, rows in enumerate(few.chunk(self.parts, 1)):
            settings = {"iterations": _ITERATIONS, "tolerance": _TOLERANCE, "seed": seed + part, "fewer": True}
            book = kmeans(rows.contiguous(), self.codes, **settings)  # pyright: ignore[reportArgumentType]
            books.append(F.pad(book, (0, 0, 0, self.codes - len(book)), value=0.0))
            progress(part + 1, self.parts, f"part {part + 1}")
        half = held(torch.stack(books))
        codes = nearest_codes(values.contiguous(), half.float())
        packed = PackedColumns.of(codes.to(torch.uint8), ((self.parts, bits_for(self.codes)),))
        return ProductForm(packed, half, held(basis) if self.rotation else None, vectors.shape[1])


def held(values: Tensor) -> Tensor:
    """Convert constants to the form in which they are held: matrices as float16."""
    return values.half().contiguous() if values.dim() > 1 else values.float().contiguous()


def spread_bits(variances: Tensor, total: int) -> Tensor:
    """Return the bits of columns, int64 [columns], each where it lowers the squared error most; at most 8 per column.

    Example:
        >>> import torch
        >>> spread_bits(torch.tensor([16.0, 1.0, 0.01]), total=4)
        tensor([3, 1, 0])
    """
    lost = torch.tensor(_LOST, dtype=torch.float64, device="cpu")
    saved = torch.cat([lost[:-1] - lost[1:], lost.new_zeros(1)])
    bits = torch.zeros(len(variances), dtype=torch.int64, device="cpu")
    spread = variances.double().cpu()
    for _ in range(total):
        bits[(spread * saved[bits]).masked_fill(bits == 8, -1.0).argmax()] += 1
    return bits


def unbiased(vectors: Tensor, decoded: Tensor) -> Tensor:
    """Return the factor of each row that makes its product with the vector the vector's square, [rows, 1].

    It is 0 for rows whose product is not positive.
    """
    factors = vectors.square().sum(1, keepdim=True) / (vectors * decoded).sum(1, keepdim=True)
    return factors.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)


def least_squares(values: Tensor, decoded: Tensor) -> Tensor:
    """Return the factor of each row that brings the decoded row closest to the values, [rows, 1]; never negative."""
    return (
        ((values * decoded).sum(1, keepdim=True) / decoded.square().sum(1, keepdim=True)).nan_to_num(0.0).clamp(min=0)
    )
