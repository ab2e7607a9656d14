"""The codecs of a learned width: the first columns of a table, as many as a search in training has found."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embcomp.codecs.base import Codec, Coded, Coding, weighed
from embcomp.codecs.mask_rules import home_of
from embcomp.constants import Maps

VALUE_BYTES = 4  # values are served as float32

Rule = Literal["mixture", "evolution"]


@dataclass(frozen=True)
class Columns(Coding):
    """The first columns of a table, and zeros after them.

    Attributes:
        width: the number of columns before a search.
        candidates: the widths of the search, ascending, from 1 to the width of the table.
        rule: the rule of the search.
        strength: the factor of the penalty of wide rows, for the rule "mixture".
        generations: the generations of the rule "evolution".
        batches: the held-out batches that judge a candidate, for the rule "evolution".
        search: the share of the epochs that search.
        seed: the seed of the random numbers of the search.
    """

    rounds: ClassVar[bool] = False

    width: int
    candidates: tuple[int, ...]
    rule: Rule = "mixture"
    strength: float = 0.0
    generations: int = 0
    batches: int = 0
    search: float = 0.5
    seed: int = 0

    def nbytes(self, rows: int, dim: int, float_bytes: int) -> int:
        fixed = 8 + 1  # the width, and whether it searches
        if self.rule == "evolution":
            return fixed
        return fixed + 4 + len(self.candidates) * (4 + float_bytes)  # temperature, noise and alpha

    def served_nbytes(self, rows: int, dim: int) -> int:
        return rows * self.width * VALUE_BYTES

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
        values = constants["values"]
        vectors = F.pad(values[rows], (0, dim - values.shape[1]))
        return weighed(vectors, offsets, weights, mode)

    def module(self, rows: int, dim: int, device: Any = None, dtype: torch.dtype | None = None) -> "ColumnsCodec":
        codec = MixtureCodec if self.rule == "mixture" else ColumnsCodec
        return codec(self, rows, dim, device, dtype)


class ColumnsCodec(Codec, Maps):
    """A codec that keeps the first columns of a table; while it searches, another number of them in each step.

    Attributes:
        width: the number of columns that are kept, int64 [].
        searching: whether the width is searched, uint8 [].
    """

    width: Tensor
    searching: Tensor

    def __init__(
        self, coding: Columns, rows: int, dim: int, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(coding, rows, dim)
        self.columns, home = coding, home_of(device)
        self.register_buffer("width", torch.tensor(coding.width, device=home))
        self.register_buffer("searching", torch.zeros((), dtype=torch.uint8, device=home))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.width.fill_(self.columns.width)
        self.searching.zero_()

    @property
    def served_nbytes(self) -> int:
        """The bytes of the served form; of all columns while the width is searched."""
        return self.rows * (self.dim if bool(self.searching) else int(self.width)) * VALUE_BYTES

    def forward(self, stored: Tensor, rows: Tensor, measured: Tensor | None) -> Tensor:
        if stored.is_meta:  # only shapes are asked for
            return stored * 1
        return self.first(stored)

    def first(self, stored: Tensor) -> Tensor:
        """Return rows with zeros after the columns that are kept."""
        kept = torch.arange(self.dim, device=stored.device) < self.width
        return stored.masked_fill(~kept, 0.0)

    @torch.no_grad()
    def begin(self) -> None:
        """Start the search."""
        self.reset_parameters()
        self.searching.fill_(1)

    @torch.no_grad()
    def choose(self, width: int) -> None:
        """End the search with a width."""
        self.width.fill_(width)
        self.searching.zero_()

    @torch.no_grad()
    def fit_(self, stored: Tensor, values: Tensor | None = None) -> None:
        self.reset_parameters()

    @torch.no_grad()
    def code(self, stored: Tensor) -> Coded:
        width = self.dim if bool(self.searching) else int(self.width)
        values = self.decode_table(stored)[:, :width].float().contiguous()
        return Coded(torch.empty(0, 1, dtype=torch.uint8), 8, {"values": values})

    def extra_repr(self) -> str:
        return f"width={int(self.width)} of {self.dim}"


class MixtureCodec(ColumnsCodec):
    """A codec that keeps the first columns of a table, or searches how many by a mixture of widths.

    While it searches, column c is multiplied by the probability of the widths above c, under softmax((alpha + noise) /
    temperature) over the candidates: the mean of the vectors of all widths.

    Attributes:
        alpha: the logits of the candidates, [candidates, 1].
        noise: the Gumbel noise of the step, float32 [candidates].
        temperature: the temperature of the softmax, float32 [].
    """

    noise: Tensor
    temperature: Tensor

    def __init__(
        self, coding: Columns, rows: int, dim: int, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(coding, rows, dim, device, dtype)
        number, home = len(coding.candidates), home_of(device)
        self.alpha = nn.Parameter(torch.zeros(number, 1, device=device, dtype=dtype))
        self.register_buffer("noise", torch.zeros(number, dtype=torch.float32, device=home))
        self.register_buffer("temperature", torch.ones((), dtype=torch.float32, device=home))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start with equal probabilities of all candidates."""
        super().reset_parameters()
        nn.init.zeros_(self.alpha)
        self.noise.zero_()
        self.temperature.fill_(1.0)

    def probabilities(self, noisy: bool = True) -> Tensor:
        """Return the probability of each candidate, [candidates]; of a step, or without its noise."""
        alpha = self.alpha.squeeze(1)
        if not noisy:
            return torch.softmax(alpha, 0)
        return torch.softmax((alpha + self.noise.to(alpha.dtype)) / self.temperature, 0)

    def gates(self, probabilities: Tensor) -> Tensor:
        """Return the probability of the widths above each column, [dim]."""
        columns = torch.arange(self.dim, device=probabilities.device)
        wide = [(columns < width).to(probabilities.dtype) for width in self.columns.candidates]
        return (probabilities.unsqueeze(1) * torch.stack(wide)).sum(0)

    def forward(self, stored: Tensor, rows: Tensor, measured: Tensor | None) -> Tensor:
        if stored.is_meta:  # only shapes are asked for
            return stored + self.alpha.sum()
        found = stored * self.gates(self.probabilities()).to(stored.dtype)
        return torch.where(self.searching.bool(), found, self.first(stored))
