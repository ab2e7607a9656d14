"""The stages of tables whose widths are learned: search, choose together, train again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from embcomp.codecs.columns import ColumnsCodec
from embcomp.ops.hashing import hash_key
from embcomp.stages import Site, TableStages, stages_of


class WidthStages(TableStages):
    """The stages of a table of `LearnedWidths`."""

    begins_again = True

    def __init__(self, codec: ColumnsCodec, site: Site) -> None:
        self.codec = codec
        self.search = site.search_epochs(codec.columns.search, "its width")
        self._key = hash_key(codec.columns.seed, site.held.table.name, 0) & (2**61 - 1)

    def begin(self) -> None:
        self.codec.begin()
        self._draw(0)

    def step(self, done: int) -> None:
        if bool(self.codec.searching):
            self._draw(done)

    @torch.no_grad()
    def _draw(self, done: int) -> None:
        """Draw the noise of a step, which follows from the seed, the table and the number of the step."""
        codec, generator = self.codec, torch.Generator().manual_seed(self._key + done)
        uniform = torch.rand(codec.noise.shape, generator=generator, dtype=torch.float64).clamp(min=1e-30)
        codec.noise.copy_(-(-uniform.log()).clamp(min=1e-30).log())
        codec.temperature.fill_(max(0.01, 1 - 5e-5 * done))

    def penalty(self) -> Tensor:
        codec = self.codec
        return codec.columns.strength * codec.gates(codec.probabilities(noisy=False)).mean()

    @classmethod
    def choose_together(cls, tables: Sequence[Any]) -> None:
        """Choose the widths of all tables: the likeliest columns that fit into the bytes of the widths of before."""
        codecs: list[ColumnsCodec] = [stages.codec for stages in tables]
        room = sum(codec.rows * codec.columns.width for codec in codecs)
        steps = [
            (width > 1, -float(gates[below]), width, number, codec.rows * (width - below))
            for number, codec in enumerate(codecs)
            for gates in [codec.gates(codec.probabilities(noisy=False).double())]
            for below, width in zip((0, *codec.columns.candidates), codec.columns.candidates, strict=False)
        ]
        widths, full = [0] * len(codecs), set()
        for _, _, width, number, values in sorted(steps):
            if number in full or values > room:  # further columns need those before them
                full.add(number)
                continue
            widths[number], room = width, room - values
        for codec, width in zip(codecs, widths, strict=True):
            codec.choose(width)


@stages_of.register
def _(part: ColumnsCodec, site: Site) -> TableStages:
    return WidthStages(part, site)
