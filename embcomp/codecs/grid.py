"""The codec that rounds values to a grid of few bits with a learned step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from embcomp.codecs.base import Codec, Coded, Coding
from embcomp.ops.grid import RowGrid, best_step, levels, snap
from embcomp.ops.grid_rows import grid_bags
from embcomp.ops.packed_rows import packed_nbytes

STEP_BYTES = 4  # a step is served as float32
PACE = 0.2  # of the logarithm of a step, against a weight: see `GridCodec`
_SAMPLE = 1 << 18  # values that are looked at for one step
# The step that loses least for values of a normal distribution with deviation 1 (Max 1960, table II), by bits.
STEP_OF_NORMAL = {1: 1.596, 2: 0.9957, 3: 0.5860, 4: 0.3352, 5: 0.1881, 6: 0.1041, 7: 0.0569, 8: 0.0308}


@dataclass(frozen=True)
class Grid(Coding):
    """A symmetric grid without a zero: `bits` bits for each value, and a learned step (`embcomp.ops.grid`).

    Attributes:
        bits: the bits of a value, 1 to 8.
        step: "table" for one step, "row" for one in each row, or the number of consecutive rows that share a step.
        rounding: "nearest", or "stochastic" in training.
    """

    bits: int
    step: Literal["table", "row"] | int = "table"
    rounding: Literal["nearest", "stochastic"] = "nearest"

    def columns(self, dim: int) -> int:
        """The columns of a step inside the row: one, or 4 so that FBGEMM can read rows of a multiple of 4."""
        return 0 if self.step != "row" else 1 if dim % 4 else 4

    def steps(self, rows: int) -> int:
        """The number of steps that are stored beside the rows."""
        return -(-rows // self.step) if isinstance(self.step, int) else 1

    def nbytes(self, rows: int, dim: int, float_bytes: int) -> int:
        return 0 if self.step == "row" else self.steps(rows) * float_bytes

    def served_nbytes(self, rows: int, dim: int) -> int:
        steps = rows if self.step == "row" else self.steps(rows)
        return packed_nbytes(rows, dim, self.bits) + steps * STEP_BYTES

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
        shared = self.step if isinstance(self.step, int) else {"table": 0, "row": 1}[self.step]
        return grid_bags(packed, self.bits, dim, constants["step"], shared, rows, offsets, weights, mode)

    def module(self, rows: int, dim: int, device: Any = None, dtype: torch.dtype | None = None) -> "GridCodec":
        return GridCodec(self, rows, dim, device, dtype)


class GridCodec(Codec):
    """A codec that rounds values to a grid whose step is learned: step = c(bits) * size(rows) * exp(PACE * growth).

    The first two factors are the best step for normally distributed rows of the current size, so that the grid follows
    rows that grow from a small start; no gradient goes through them. `growth` is learned. If the step itself were the
    parameter, Adam with the learning rate of the rows would move it by several times its size, and training would
    collapse.

    The size of rows is their root mean square. If most of a table's rows are hardly ever read they stay small, and a
    grid of their size would cut off those that are read. With one step for a table the square of the size is therefore
    at least mean(v^4) / mean(v^2) / 3 - mean(v^2): the first term is the mean square where values are normally
    distributed, and that of the large rows where most are small. In the trained tables of Globo and Beauty, whose rows
    are all read, the first term is 1.2 to 1.6 times the mean square, and below 2 the least size changes nothing.

    Attributes:
        growth: the logarithm of the learned factor of each step, divided by PACE, [steps, 1]; None with step="row",
            where a column of the table holds it.
    """

    def __init__(self, grid: Grid, rows: int, dim: int, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(grid, rows, dim)
        self.grid = grid
        zeros = torch.zeros(grid.steps(rows), 1, device=device, dtype=dtype)
        self.growth = None if grid.step == "row" else nn.Parameter(zeros)
        self.shared = grid.step if isinstance(grid.step, int) else rows  # rows that one deviation is taken over
        of_one_step = 1 if grid.step == "row" else min(self.shared, rows)
        # Esser et al. 2020, section 2.2: 1 / sqrt(number of values * largest level)
        self.gradient_scale = 1.0 / math.sqrt(of_one_step * dim * max(0.5, 2 ** (grid.bits - 1) - 1))
        self.every = max(1, rows * dim // _SAMPLE) if self.shared == rows else 1

    def reset_parameters(self) -> None:
        if self.growth is not None:
            nn.init.zeros_(self.growth)

    def measure(self, stored: Tensor, first: int = 0) -> Tensor:
        """Sum the squares, count the values, and sum the fourth powers where one step is for all, [3, steps].

        A large table is sampled at equally spaced rows.
        """
        skipped = -first % self.every
        values = stored.detach()[skipped :: self.every, : self.dim].double()
        if self.shared == self.rows:
            squares = values.square()
            total = squares.sum()
            count = torch.ones_like(total) * values.numel()
            return torch.stack([total, count, squares.square().sum()]).unsqueeze(1)
        squares = values.square().sum(1)
        sums = squares.new_zeros(3, self.coding.steps(self.rows))  # pyright: ignore[reportAttributeAccessIssue]
        group = (torch.ones_like(squares, dtype=torch.int64).cumsum(0) + (first - 1)) // self.shared
        each = torch.stack([squares, torch.full_like(squares, float(self.dim)), torch.zeros_like(squares)])
        return sums.index_add(1, group, each)

    def steps(self, stored: Tensor, rows: Tensor, measured: Tensor) -> Tensor:
        """Return the step of each row, float32 (or float64), [..., 1] or [1]."""
        kind = torch.promote_types(stored.dtype, torch.float32)
        if self.growth is None:
            return self._plain(measured, kind) * (PACE * stored[..., self.dim : self.dim + 1].to(kind)).exp()
        step = self._grown(self.growth, measured, kind)
        return step if self.shared == self.rows else step[rows // self.shared].unsqueeze(-1)

    def _plain(self, measured: Tensor, kind: torch.dtype) -> Tensor:
        squares, count, fourths = measured
        mean = squares / count.clamp(min=1.0)
        size = torch.maximum(mean, fourths / squares.clamp(min=1e-60) / 3 - mean)
        deviation = size.sqrt().clamp(min=1e-30).to(kind)
        return STEP_OF_NORMAL[self.grid.bits] * deviation

    def _grown(self, growth: Tensor, measured: Tensor, kind: torch.dtype) -> Tensor:
        return self._plain(measured, kind) * (PACE * growth.squeeze(1).to(kind)).exp()

    def row_grid(self, measured: Tensor | None) -> RowGrid | None:
        if measured is None or self.growth is None or (self.training and self.grid.rounding == "stochastic"):
            return None
        step = self._grown(self.growth, measured, torch.float32)
        return RowGrid(step, 0 if self.shared == self.rows else self.shared, self.grid.bits, self.gradient_scale)

    def forward(self, stored: Tensor, rows: Tensor, measured: Tensor | None) -> Tensor:
        assert measured is not None
        step = self.steps(stored, rows, measured)
        stochastic = self.training and self.grid.rounding == "stochastic"
        values = snap(stored[..., : self.dim].to(step.dtype), step, self.grid.bits, self.gradient_scale, stochastic)
        return values.to(stored.dtype)

    @torch.no_grad()
    def fit_(self, stored: Tensor, values: Tensor | None = None) -> None:
        self.reset_parameters()
        if self.growth is None:
            stored[:, self.dim :] = 0
        values, rows = stored[:, : self.dim], torch.arange(len(stored), device=stored.device)
        plain = self.steps(stored, rows, self.measure(stored)).float()
        if self.growth is None:
            best = torch.cat([best_step(block, self.grid.bits) for block in values.split(max(1, _SAMPLE // self.dim))])
            stored[:, self.dim : self.dim + 1] = (best / plain).log() / PACE
            return
        best = [best_step(_sample(block).reshape(1, -1), self.grid.bits) for block in values.split(self.shared)]
        first = plain.reshape(-1)[:: self.shared] if self.shared < self.rows else plain
        self.growth.copy_((torch.cat(best).reshape(-1) / first).log().unsqueeze(1) / PACE)

    @torch.no_grad()
    def code(self, stored: Tensor) -> Coded:
        rows = torch.arange(stored.shape[0], device=stored.device)
        step = self.steps(stored, rows, self.measure(stored))
        numbers = levels(stored[:, : self.dim].to(step.dtype), step, self.grid.bits) + 2 ** (self.grid.bits - 1)
        if self.shared < self.rows:
            step = step[:: self.shared]
        return Coded(numbers.to(torch.uint8), self.grid.bits, {"step": step.float().reshape(-1)})

    def extra_repr(self) -> str:
        return f"bits={self.grid.bits}, step={self.grid.step!r}"


def _sample(values: Tensor) -> Tensor:
    """Take equally spaced rows, with at most about `_SAMPLE` values."""
    every = max(1, values.numel() // _SAMPLE)
    return values[::every]
