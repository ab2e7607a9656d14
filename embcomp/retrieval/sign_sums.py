"""Sums of signed vectors: a row is its size times the sum of +-b_j, with signs and vectors b_j fitted in turn."""

from dataclasses import dataclass

import torch
from torch import Tensor

from embcomp.ops.grid import best_step, levels
from embcomp.ops.kmeans import no_progress
from embcomp.ops.packed_columns import PackedColumns, groups_nbytes
from embcomp.retrieval.forms import Form, GridForm, quantized_scales
from embcomp.retrieval.rotations import directions, sample
from embcomp.retrieval.ways import FLOAT16, SIZES_NBYTES, Progress, Way, held, least_squares, spread_bits

_ROUNDS = 20  # of vectors and signs in turn
_SWEEPS = 2  # over the signs in a round
_LAST = 8  # over the signs at the end, where the vectors stay
_BLOCK = 1 << 12  # rows at a time: their errors stay in the cache
_SAMPLE = 1 << 15  # rows that the vectors are fitted to


@dataclass(frozen=True, kw_only=True)
class SignSums(Way):
    """A way with any number of signs per vector: binary additive codes (Babenko and Lempitsky 2014).

    In turn each sign of a row is set to the one that loses less, given the others, and the vectors b_j are fitted by
    least squares. It starts from recurrent sign codes, and again from grids along the directions of largest spread, and
    keeps the better result. It suits one or two bits per value: with more, signs end far from the optimum, and grids
    lose less. It takes minutes for millions of rows.

    Attributes:
        signs: the number of signs of a row.
    """

    signs: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.signs, bool) or not isinstance(self.signs, int) or self.signs < 1:
            raise ValueError(f"signs must be at least 1, got {self.signs!r}")
        if self.width is not None or self.rotation is not None:
            raise ValueError("signs are of vectors that are fitted: leave width and rotation out")

    def check(self, rows: int, dim: int) -> None:
        super().check(rows, dim)
        if self.signs > 8 * dim:
            raise ValueError(f"signs={self.signs} are more than 8 for each of {dim} values: lower it, or take bits=8")

    def nbytes(self, rows: int, dim: int) -> int:
        return groups_nbytes(rows, ((self.signs, 1),)) + FLOAT16 * self.signs * dim + rows + SIZES_NBYTES

    def fit(
        self, vectors: Tensor, queries: Tensor | None = None, seed: int = 0, progress: Progress = no_progress
    ) -> Form:
        rows = sample(vectors, seed, _SAMPLE)
        size = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-30)
        tries: list[tuple[float, Tensor]] = []
        for number, start in enumerate((_recurrent, _spread)):
            basis, signs = start(rows / size, self.signs, seed)
            fitted, lost = size, torch.ones(())
            for step in range(_ROUNDS):
                signs = _descend(rows / fitted, signs, basis, _SWEEPS)
                basis = _fitted(rows / fitted, signs, fitted.square())
                fitted = least_squares(rows, signs @ basis).clamp(min=1e-30)
                lost = (rows - fitted * (signs @ basis)).square().sum() / rows.square().sum().clamp(min=1e-30)
                progress(number * _ROUNDS + step + 1, 2 * _ROUNDS + 1, f"lost {float(lost):.4f} of the squares")
            tries.append((float(lost), basis))
        basis = held(2 * min(tries, key=lambda each: each[0])[1])  # codes 0 and 1 less their middle are halves
        codes, sizes = [], []
        for block in vectors.split(_BLOCK):
            signs, size = _code(block, basis.float() / 2)
            codes.append((signs > 0).to(torch.uint8))
            sizes.append(size)
        scales, steps = quantized_scales(torch.cat(sizes).squeeze(1))
        progress(2 * _ROUNDS + 1, 2 * _ROUNDS + 1, "coded")
        return GridForm(PackedColumns.of(torch.cat(codes), ((self.signs, 1),)), basis, scales, steps, vectors.shape[1])


def _recurrent(unit: Tensor, number: int, seed: int) -> tuple[Tensor, Tensor]:
    """The recurrent sign codes, with a smaller last level: vectors [number, dim] and signs [rows, number]."""
    bases, signs, left = [], [], unit
    while (missing := number - sum(map(len, bases))) > 0:
        turn = directions(left, "itq", min(unit.shape[1], missing), seed + len(bases))
        assert turn is not None
        values = left @ turn.T
        sign = torch.where(values < 0, -1.0, 1.0)
        bases.append(values.abs().mean() * turn)
        signs.append(sign)
        left = left - sign @ bases[-1]
    return torch.cat(bases), torch.cat(signs, 1)


def _spread(unit: Tensor, number: int, seed: int) -> tuple[Tensor, Tensor]:
    """The grids along the directions of largest spread, as in `Spread`: b bits are b signs, each twice the next."""
    turn = directions(unit, "svd", unit.shape[1], seed)
    assert turn is not None
    values = unit @ turn.T
    bits = spread_bits(values.square().mean(0), number)
    bases, signs = [], []
    for column in bits.nonzero().flatten().tolist():
        each = int(bits[column])
        step = best_step(values[:, column].reshape(1, -1), each)
        code = levels(values[:, column], step[0], each).long() + 2 ** (each - 1)
        for bit in range(each):
            signs.append(((code >> bit) & 1).float() * 2 - 1)
            bases.append(step[0] * 2**bit / 2 * turn[column])
    return torch.stack(bases), torch.stack(signs, 1)


def _descend(unit: Tensor, signs: Tensor, basis: Tensor, sweeps: int) -> Tensor:
    """Set each sign in turn to the one that loses less, given the others."""
    squares = basis.square().sum(1).tolist()
    blocks: list[Tensor] = []
    for rows, held_ in zip(unit.split(_BLOCK), signs.split(_BLOCK), strict=True):
        columns = held_.T.contiguous()
        left = rows - held_ @ basis
        for _ in range(sweeps):
            before = columns.clone()
            for j, vector in enumerate(basis):
                new = torch.where(torch.addmv(columns[j] * squares[j], left, vector) < 0, -1.0, 1.0)
                left.addr_(columns[j] - new, vector)
                columns[j] = new
            if torch.equal(before, columns):
                break
        blocks.append(columns.T)
    return torch.cat(blocks)


def _fitted(unit: Tensor, signs: Tensor, weights: Tensor) -> Tensor:
    """The vectors that minimise the squared error, rows weighted by the squares of their sizes."""
    weighed = (signs * weights).double()
    gram = weighed.T @ signs.double()
    ridge = 1e-4 * float(weights.sum()) * torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    return torch.linalg.solve(gram + ridge, weighed.T @ unit.double()).float()


def _code(rows: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The signs and sizes of rows for fixed vectors, computed twice: first with the norms, then with fitted sizes."""
    size = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-30)
    left = rows / size
    signs = torch.empty(len(rows), len(basis), device=rows.device)
    for j in basis.square().sum(1).argsort(descending=True).tolist():  # the longest first, each of what is left
        signs[:, j] = torch.where(left @ basis[j] < 0, -1.0, 1.0)
        left = left - signs[:, j : j + 1] * basis[j]
    signs = _descend(rows / size, signs, basis, _LAST)
    size = least_squares(rows, signs @ basis)
    signs = _descend(rows / size.clamp(min=1e-30), signs, basis, _LAST)
    return signs, least_squares(rows, signs @ basis)
