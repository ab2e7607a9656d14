"""Sums of signed vectors: a row is its size times the sum of +-b_j, with signs and vectors b_j fitted in turn."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp.ops.grid import best_step, levels
from embcomp.ops.kmeans import no_progress
from embcomp.ops.packed_columns import PackedColumns, groups_nbytes
from embcomp.retrieval.forms import Form, GridForm, packed_scales
from embcomp.retrieval.rotations import directions, sample
from embcomp.retrieval.ways import FLOAT16, FLOAT32, Progress, Sized, least_squares, spread_bits

_ROUNDS, _MORE = 12, 12  # of vectors and signs in turn: from each start, then from the better one with other tries
_SWEEPS = 2  # over the signs in a round
_TRIES, _LAST = 2, 12  # times that some signs of a row are flipped: in a round, and at the end, where the vectors stay
_FLIPS = 4  # signs at a time
_BLOCK = 1 << 12  # rows at a time: their errors stay in the cache
_SAMPLE = 1 << 15  # rows that the vectors are fitted to


@dataclass(frozen=True, kw_only=True)
class SignSums(Sized):
    """A way with any number of signs per vector: binary additive codes (Babenko and Lempitsky 2014).

    In turn each sign of a row is set to the one that loses less, given the others, and the vectors b_j are fitted by
    least squares. It starts from recurrent sign codes, and again from grids along the directions of largest spread, and
    goes on with the better result: some signs of a row, drawn at random, are flipped and all set again, and the row
    keeps what loses less (as in the local search of Martinez et al. 2018, LSQ++). The vectors b_j are held in 8 bits,
    the sizes of rows in 6. It suits one or two bits per value: with more, signs end far from the optimum, and grids
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
        basis = self.signs * (dim + FLOAT16)
        return groups_nbytes(rows, ((self.signs, 1),)) + basis + groups_nbytes(rows, ((1, 6),)) + 64 * FLOAT32

    def fit(
        self, vectors: Tensor, queries: Tensor | None = None, seed: int = 0, progress: Progress = no_progress
    ) -> Form:
        draw = torch.Generator().manual_seed(seed)
        rows = sample(vectors, seed, _SAMPLE)
        tries = [_fit(rows, *start(F.normalize(rows), self.signs, seed)) for start in (_recurrent, _spread)]
        progress(1, 3, f"lost {min(float(lost) for _, _, lost in tries):.4f} of the squares")
        basis, signs, _ = min(tries, key=lambda each: float(each[2]))
        basis, signs, lost = _fit(rows, basis, signs, _MORE, _TRIES, draw)
        progress(2, 3, f"lost {float(lost):.4f} of the squares")
        factors = (2 * basis.abs().amax(1) / 127).half()  # codes 0 and 1 less their middle are halves
        held = (2 * basis / factors.float().clamp(min=1e-30).unsqueeze(1)).round().clamp(-127, 127).to(torch.int8)
        basis = held.float() * factors.float().unsqueeze(1) / 2
        codes, sizes = [], []
        for block in vectors.split(_BLOCK):
            signs = _code(block, basis, draw)
            codes.append((signs > 0).to(torch.uint8))
            sizes.append(self.sizes_of(block, signs @ basis))
        scales, steps = packed_scales(torch.cat(sizes).squeeze(1))
        progress(3, 3, "coded")
        packed = PackedColumns.of(torch.cat(codes), ((self.signs, 1),))
        return GridForm(packed, held, scales, steps, vectors.shape[1], factors=factors)


def _fit(
    rows: Tensor, basis: Tensor, signs: Tensor, rounds: int = _ROUNDS, tries: int = 0,
    draw: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Fit vectors and signs in turn; return both, and the share of the squares that is lost."""
    size = least_squares(rows, signs @ basis).clamp(min=1e-30)
    for _ in range(rounds):
        signs = _descend(rows / size, signs, basis, _SWEEPS, tries, draw)
        basis = _fitted(rows / size, signs, size.square())
        size = least_squares(rows, signs @ basis).clamp(min=1e-30)
    lost = (rows - size * (signs @ basis)).square().sum() / rows.square().sum().clamp(min=1e-30)
    return basis, signs, lost


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


def _descend(
    unit: Tensor, signs: Tensor, basis: Tensor, sweeps: int, tries: int = 0, draw: torch.Generator | None = None
) -> Tensor:
    """Set each sign in turn to the one that loses less, given the others; then again after some have been flipped."""
    blocks: list[Tensor] = []
    for rows, before in zip(unit.split(_BLOCK), signs.split(_BLOCK), strict=True):
        best, lost = _swept(rows, before.T.contiguous(), basis, sweeps)
        for _ in range(tries):
            places = torch.randint(len(basis), (_FLIPS, len(rows)), generator=draw).to(best.device)
            other, lost_by_it = _swept(rows, best.scatter(0, places, -best.gather(0, places)), basis, sweeps)
            better = lost_by_it < lost
            best, lost = torch.where(better, other, best), torch.where(better, lost_by_it, lost)
        blocks.append(best.T)
    return torch.cat(blocks)


def _swept(rows: Tensor, columns: Tensor, basis: Tensor, sweeps: int) -> tuple[Tensor, Tensor]:
    """Set signs, [signs, rows], until none changes, at most so many times; return them and the squares left."""
    squares = basis.square().sum(1).tolist()
    left = rows - columns.T @ basis
    for _ in range(sweeps):
        before = columns.clone()
        for j, vector in enumerate(basis):
            new = torch.where(torch.addmv(columns[j] * squares[j], left, vector) < 0, -1.0, 1.0)
            left.addr_(columns[j] - new, vector)
            columns[j] = new
        if torch.equal(before, columns):
            break
    return columns, left.square().sum(1)


def _fitted(unit: Tensor, signs: Tensor, weights: Tensor) -> Tensor:
    """The vectors that minimise the squared error, rows weighted by the squares of their sizes."""
    weighed = (signs * weights).double()
    gram = weighed.T @ signs.double()
    ridge = 1e-4 * float(weights.sum()) * torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    return torch.linalg.solve(gram + ridge, weighed.T @ unit.double()).float()


def _code(rows: Tensor, basis: Tensor, draw: torch.Generator) -> Tensor:
    """The signs of rows for fixed vectors, computed twice: first with the norms as sizes, then with fitted ones."""
    size = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-30)
    left = rows / size
    signs = torch.empty(len(rows), len(basis), device=rows.device)
    for j in basis.square().sum(1).argsort(descending=True).tolist():  # the longest first, each of what is left
        signs[:, j] = torch.where(left @ basis[j] < 0, -1.0, 1.0)
        left = left - signs[:, j : j + 1] * basis[j]
    signs = _descend(rows / size, signs, basis, _SWEEPS)
    size = least_squares(rows, signs @ basis).clamp(min=1e-30)
    return _descend(rows / size, signs, basis, 2 * _SWEEPS, _LAST, draw)
