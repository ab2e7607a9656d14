"""The codec of a grid whose bits differ from group to group of rows, and are learned as a mixture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from embcomp.codecs.base import Codec, Coded, Coding, weighed
from embcomp.codecs.grid import PACE, STEP_OF_NORMAL
from embcomp.codecs.shared_bits import share_bits, sizes_of
from embcomp.constants import Maps
from embcomp.ops.grid import best_step, levels, snap, snap_reference
from embcomp.ops.ragged_rows import pack_ragged, ragged_nbytes, read_ragged, run_nbytes

TEMPERATURE = 3e-3  # of the paper, whose learning rate is a third of it
VALUE_BYTES = 4  # steps and centres are served as float32
SEARCHES, FITTED = 1, 2  # of `MixedGridCodec.searches`
_SAMPLE = 1 << 18  # values that are looked at for the moments of the rows
_BLOCK = 1 << 16  # rows at a time


@dataclass(frozen=True)
class MixedGrid(Coding):
    """A grid for each number of bits from 0 to `most`; every group of rows has one of them.

    Attributes:
        bits: the bits of each group at first.
        most: the most bits of a group, 1 to 8.
        mean_bits: the most mean bits of a value that a search may choose; None if the probabilities alone decide.
        temperature: the temperature of the probabilities while bits are searched; None for 3 learning rates.
        strength: the factor of the penalty on the expected bits.
        search: the share of the epochs that search.
        group: the group of each row, uint8 [rows]; None if only sizes are asked for.
        rarity: one over the reads of each group, float32 [groups]; 0 for a group without rows.
    """

    bound: ClassVar[bool] = True  # rows in the order of their bits need no map

    bits: tuple[int, ...]
    most: int
    mean_bits: float | None
    temperature: float | None
    strength: float
    search: float
    group: Tensor | None = field(default=None, repr=False, compare=False)
    rarity: Tensor | None = field(default=None, repr=False, compare=False)

    def nbytes(self, rows: int, dim: int, float_bytes: int) -> int:
        groups, number = len(self.bits), self.most + 1
        return rows + groups * (1 + 4) + 1 + (groups * number + number + dim) * float_bytes

    def served_nbytes(self, rows: int, dim: int) -> int:
        return self.served_with(self.bits, rows, dim)

    def served_with(self, bits: Sequence[int], rows: int, dim: int, runs: int | None = None) -> int:
        """Return the bytes of the served form with these bits of the groups.

        Args:
            bits: the bits of each group.
            rows: the number of rows.
            dim: the width of a row.
            runs: the number of runs of rows with equal bits, or None for the bytes in whatever order the rows are.
        """
        values = sum(size * own for size, own in zip(sizes_of(rows, len(bits)), bits, strict=True))
        return ragged_nbytes(rows, dim, values, self.most, runs) + (self.most + 1 + dim) * VALUE_BYTES

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
        codes, bits = read_ragged(packed, dim, constants, self.most, rows)
        half = torch.pow(2.0, bits.float() - 1).unsqueeze(1)
        vectors = constants["centre"] + (codes - (half - 0.5)) * constants["step"][bits].unsqueeze(1)
        return weighed(vectors, offsets, weights, mode)

    def module(self, rows: int, dim: int, device: Any = None, dtype: torch.dtype | None = None) -> "MixedGridCodec":
        return MixedGridCodec(self, rows, dim, device, dtype)


class MixedGridCodec(Maps, Codec):
    """A codec that rounds each row to the grid of its group's bits, around a common centre (MPE, arXiv 2409.20305).

    v(w) = centre + Q_b(w - centre), with Q_b the grid of b bits (`embcomp.ops.grid`), and Q_0 = 0. While it searches, v
    is a mixture, centre + sum_b p_b Q_b(w - centre), with p = softmax(logits[group] / temperature). Steps and centre
    are in units of the deviation of the rows, as in `GridCodec`.

    Attributes:
        logits: the logits of 0, 1, ... bits in each group, [groups, most + 1].
        growth: the logarithm of the learned factor of the step of as many bits, divided by PACE, [most + 1, 1].
        offset: the centre minus the mean of all values, in units of their deviation, [1, dim].
        group: the group of each row, uint8 [rows].
        chosen: the bits of each group, uint8 [groups].
        rarity: one over the reads of each group, float32 [groups]; 0 for a group without rows.
        searches: 1 while the bits are searched, 2 where a fit has chosen them, else 0, uint8 []; `searching` and
            `fitted` are the same for Python.
        temperature: the temperature of the probabilities.
    """

    group: Tensor
    chosen: Tensor
    rarity: Tensor
    searches: Tensor

    def __init__(
        self, coding: MixedGrid, rows: int, dim: int, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(coding, rows, dim)
        self.mixed, groups, number = coding, len(coding.bits), coding.most + 1
        self.every = max(1, rows * dim // _SAMPLE)
        self.temperature = TEMPERATURE if coding.temperature is None else coding.temperature
        self.logits, self.growth, self.offset = (
            nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            for shape in ((groups, number), (number, 1), (1, dim))
        )
        real = "cpu" if self.logits.is_meta else self.logits.device  # buffers follow from the configuration
        for name, length in (("group", rows), ("chosen", groups)):
            self.register_buffer(name, torch.zeros(length, dtype=torch.uint8, device=real))
        self.register_buffer("rarity", torch.zeros(groups, dtype=torch.float32, device=real))
        self.register_buffer("searches", torch.zeros((), dtype=torch.uint8, device=real))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set parameters, groups and bits to their initial values; no bits are searched."""
        for parameter in (self.logits, self.growth, self.offset):
            nn.init.zeros_(parameter)
        self.searching = False
        self.searches.zero_()
        self.chosen.copy_(torch.tensor(self.mixed.bits, dtype=torch.uint8, device="cpu"))
        if self.mixed.group is not None and self.mixed.rarity is not None:
            self.group.copy_(self.mixed.group)
            self.rarity.copy_(self.mixed.rarity)

    @property
    def bits(self) -> list[int]:
        """The bits of each group."""
        return self.chosen.tolist()

    @property
    def served_nbytes(self) -> int:
        own = self.chosen[self.group.unique_consecutive().long()].unique_consecutive()
        return self.mixed.served_with(self.bits, self.rows, self.dim, len(own))

    @property
    def turn(self) -> int:
        """The bits that it takes if a group has other bits than the one before it; none where each row has its own."""
        in_order = bool((self.group.short().diff() >= 0).all())
        return 8 * run_nbytes(self.rows, self.mixed.most) if in_order else 0

    def probabilities(self) -> Tensor:
        """Return the probability of each number of bits in each group, [groups, most + 1]."""
        return (self.logits.float() / self.temperature).softmax(1)

    def penalty(self) -> Tensor:
        """Return the penalty on the expected bits: strength * sum_g (least reads / reads)_g sum_b p_gb b."""
        bits = torch.arange(self.mixed.most + 1, dtype=torch.float32, device=self.logits.device)
        weights = self.rarity / self.rarity.amax().clamp(min=1e-30)
        return self.mixed.strength * (weights @ (self.probabilities() @ bits))

    def measure(self, stored: Tensor, first: int = 0) -> Tensor:
        """Measure the number, the sum and the sum of squares of the values, [3]; a large table is sampled."""
        values = stored.detach()[-first % self.every :: self.every].double()
        total = values.sum()
        return torch.stack([torch.ones_like(total) * values.numel(), total, values.square().sum()])

    def grid(self, measured: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the centre, [dim], and the step of each number of bits, [most + 1]; that of no bits is not used."""
        count, total, squares = measured.unbind()
        mean = total / count.clamp(min=1.0)
        deviation = (squares / count.clamp(min=1.0) - mean.square()).clamp(min=0.0).sqrt().clamp(min=1e-36).to(kind)
        plain = torch.stack([deviation * STEP_OF_NORMAL.get(bits, 1.0) for bits in range(self.mixed.most + 1)])
        return mean.to(kind) + deviation * self.offset.squeeze(0).to(kind), plain * (
            PACE * self.growth.squeeze(1).to(kind)
        ).exp()

    def forward(self, stored: Tensor, rows: Tensor, measured: Tensor | None) -> Tensor:
        assert measured is not None
        kind = torch.promote_types(stored.dtype, torch.float32)
        centre, steps = self.grid(measured, kind)
        values, group = stored.to(kind) - centre, self.group.to(rows.device)[rows].long()
        if self.searching:
            return (centre + self._mixture(values, group, steps)).to(stored.dtype)
        unused = (
            self.logits * torch.zeros_like(self.logits)
        ).sum()  # so that every parameter has a gradient, as DDP expects
        return (centre + unused + self._rounded(values, group, steps)).to(stored.dtype)

    def _rounded(self, values: Tensor, group: Tensor, steps: Tensor) -> Tensor:
        own = self.chosen.to(group.device)[group].long().unsqueeze(-1)
        bits = own.to(values.dtype)
        return snap_reference(values, steps[own], bits, self._scale(bits)) * (own > 0)

    def _mixture(self, values: Tensor, group: Tensor, steps: Tensor) -> Tensor:
        shares = self.probabilities().to(values.dtype)[group]
        rounded = [snap(values, steps[bits], bits, self._scale(bits)) for bits in range(1, self.mixed.most + 1)]
        return torch.stack([shares[..., bits : bits + 1] * each for bits, each in enumerate(rounded, 1)]).sum(0)

    def _scale(self, bits: Any) -> Any:
        """Return the factor of a step's gradient (Esser et al. 2020, section 2.2), for a number or a tensor of bits."""
        largest = 2.0 ** (bits - 1) - 1
        largest = largest.clamp(min=0.5) if isinstance(largest, Tensor) else max(0.5, largest)
        return (self.rows * self.dim * largest) ** -0.5

    @torch.no_grad()
    def begin(self, rate: float | None = None) -> None:
        """Start the search, with equal probabilities; `rate` is the learning rate of the logits, if it is known."""
        if self.mixed.temperature is None and rate is not None:
            self.temperature = 3.0 * rate
        nn.init.zeros_(self.logits)
        self.searches.fill_(SEARCHES)
        self.searching = True

    @torch.no_grad()
    def choose(self) -> None:
        """End the search: give each group the most bits whose probability is at least half of an equal share.

        With `mean_bits` the bits of all tables are chosen together, by `fit_together_`.
        """
        if self.mixed.mean_bits is None:
            likely = self.probabilities() >= 0.5 / (self.mixed.most + 1)
            self.chosen.copy_((likely * torch.arange(likely.shape[1], device=likely.device)).amax(1))
        self.searches.zero_()
        self.searching = False

    @property
    def fitted(self) -> bool:
        """True if a fit to trained rows has chosen the bits."""
        return int(self.searches) == FITTED

    @classmethod
    def fit_together_(cls, tables: Sequence[tuple[Any, Tensor]]) -> None:
        """Choose the bits of all tables of one `mean_bits` together, see `share_bits`; without it bits stay."""
        kinds = dict.fromkeys((codec.mixed.mean_bits, codec.mixed.most) for codec, _ in tables)
        for kind in kinds:
            if kind[0] is not None:
                share_bits([each for each in tables if (each[0].mixed.mean_bits, each[0].mixed.most) == kind])

    @torch.no_grad()
    def fit_(self, stored: Tensor, values: Tensor | None = None) -> None:
        """Fit centre and steps. `fit_together_` then chooses the bits, and a `Schedule` does not search them."""
        self.reset_parameters()
        measured = self.measure(stored)
        centre, steps = self.grid(measured, torch.float32)
        deviation = steps[-1] / STEP_OF_NORMAL[self.mixed.most]
        self.offset.copy_((stored.float().mean(0) - centre) / deviation)
        centre, steps = self.grid(measured, torch.float32)
        sample = (stored[:: self.every].float() - centre).reshape(1, -1)
        for bits in range(1, self.mixed.most + 1):
            self.growth[bits] = (best_step(sample, bits).reshape(()) / steps[bits]).log() / PACE
        if self.mixed.mean_bits is not None:
            self.searches.fill_(FITTED)

    def errors(self, stored: Tensor) -> Tensor:
        """Return the squared error of each group with 0, 1, ... bits, times the root of the reads of a row, float64."""
        centre, steps = self.grid(self.measure(stored), torch.float32)
        errors = torch.zeros(self.logits.shape, dtype=torch.float64, device=stored.device)
        for block, group in zip(stored.split(_BLOCK), self.group.split(_BLOCK), strict=True):
            values = block.float() - centre
            for bits in range(self.mixed.most + 1):
                rounded = snap(values, steps[bits], bits) if bits else torch.zeros_like(values)
                lost = (values - rounded).square().sum(1, dtype=torch.float64)
                errors[:, bits].index_add_(0, group.long(), lost)
        sizes = torch.bincount(self.group, minlength=len(errors)).clamp(min=1)
        reads = self.rarity.double().clamp(min=1e-30).reciprocal() / sizes
        return errors * reads.sqrt().unsqueeze(1)

    @torch.no_grad()
    def code(self, stored: Tensor) -> Coded:
        if self.searching:
            raise ValueError(
                "the bits of FrequencyBits are still searched, and a mixture has no served form: train on until the "
                "Schedule has chosen them"
            )
        kind = torch.promote_types(stored.dtype, torch.float32)
        centre, steps = self.grid(self.measure(stored), kind)
        own = self.chosen[self.group.long()].long()
        bits = own.to(kind).unsqueeze(1)
        numbers = levels(stored.to(kind) - centre, steps[own].unsqueeze(1), bits) + torch.pow(2.0, bits - 1)
        packed, places = pack_ragged(numbers.long(), own, self.mixed.most)
        return Coded(packed, 8, {**places, "step": steps.float(), "centre": centre.float()})

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.searches.is_meta:
            self.searching = int(self.searches) == SEARCHES

    def extra_repr(self) -> str:
        return f"most={self.mixed.most}, groups={len(self.mixed.bits)}"
