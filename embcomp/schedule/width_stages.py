"""The stages of tables whose widths are learned: search, choose together, train again."""

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from embcomp.codecs.base import Codec
from embcomp.codecs.columns import ColumnsCodec, MixtureCodec
from embcomp.codecs.narrow_rows import NarrowRowsCodec
from embcomp.ops.hashing import hash_key
from embcomp.schedule.mask_stages import MaskStages
from embcomp.schedule.stages import Site, TableStages, stages_of
from embcomp.schedule.width_search import Widths, WidthSearch


class _WidthStages(TableStages, abc.ABC):
    """The stages of a table of `LearnedWidths`, which draws random numbers for each step of its search.

    Args:
        codec: the codec of the columns.
        site: the table.
        rows: the stages of its rows, if they are searched at the same time.
    """

    begins_again = True

    def __init__(self, codec: Any, site: Site, rows: TableStages | None = None) -> None:
        self.codec, self.rows, self.name = codec, rows or TableStages(), site.name
        self.search = site.search_epochs(codec.columns.search, "its width")
        self._key = hash_key(codec.columns.seed, site.held.table.name, 0) & (2**61 - 1)

    def begin(self) -> None:
        self.rows.begin()
        self.codec.begin()
        self.draw(0, torch.Generator().manual_seed(self._key))

    def step(self, done: int) -> None:
        self.rows.step(done)
        if bool(self.codec.searching):
            self.draw(done, torch.Generator().manual_seed(self._key + done))

    def penalty(self) -> Tensor | None:
        return self.rows.penalty()

    def codecs(self) -> Sequence[Codec]:
        return [self.codec, *self.rows.codecs()]

    @classmethod
    def choose_together(cls, tables: Sequence[Any]) -> None:
        for stages in tables:
            stages.rows.choose()
        cls.choose_widths(tables)

    @classmethod
    @abc.abstractmethod
    def choose_widths(cls, tables: Sequence[Any]) -> None:
        """Choose the widths of all tables, whose rows are chosen."""

    @abc.abstractmethod
    def draw(self, done: int, generator: torch.Generator) -> None:
        """Draw what a step reads; it follows from the seed, the table and the number of steps that are done."""


class MixtureStages(_WidthStages):
    """The stages of a table whose width is searched by a mixture of widths."""

    codec: MixtureCodec

    @torch.no_grad()
    def draw(self, done: int, generator: torch.Generator) -> None:
        codec = self.codec
        uniform = torch.rand(codec.noise.shape, generator=generator, dtype=torch.float64).clamp(min=1e-30)
        codec.noise.copy_(-(-uniform.log()).clamp(min=1e-30).log())
        codec.temperature.fill_(max(0.01, 1 - 5e-5 * done))

    def penalty(self) -> Tensor:
        codec, rows = self.codec, super().penalty()
        own = codec.columns.strength * codec.gates(codec.probabilities(noisy=False)).mean()
        return own if rows is None else own + rows

    def held_out(self) -> Sequence[nn.Parameter]:
        return [self.codec.alpha]

    @classmethod
    def choose_widths(cls, tables: Sequence[Any]) -> None:
        """Choose the widths of all tables: the likeliest columns that fit into the bytes of the widths of before."""
        codecs: list[MixtureCodec] = [stages.codec for stages in tables]
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


class RandomStages(_WidthStages):
    """The stages of a table that is trained with random widths, among which an evolutionary search chooses."""

    codec: ColumnsCodec

    def __init__(self, codec: ColumnsCodec, site: Site, rows: TableStages | None = None) -> None:
        super().__init__(codec, site, rows)
        if site.validate is None:
            raise ValueError(
                f"table {site.name!r}: rule='evolution' judges widths on held-out data; give the Schedule its "
                "validate=, or take rule='mixture'"
            )
        self._validate = site.validate

    @torch.no_grad()
    def draw(self, done: int, generator: torch.Generator) -> None:
        candidates = self.codec.columns.candidates
        self.codec.width.fill_(candidates[int(torch.randint(len(candidates), (), generator=generator))])

    @classmethod
    def check_together(cls, tables: Sequence[Any]) -> None:
        first, *others = tables
        for stages in others:
            for name in ("generations", "batches", "seed"):
                mine, theirs = getattr(stages.codec.columns, name), getattr(first.codec.columns, name)
                if mine != theirs:
                    raise ValueError(
                        f"table {stages.name!r}: {name}={mine}, but {theirs} for table {first.name!r}: widths of all "
                        "tables are searched together; give them the same"
                    )

    @classmethod
    def choose_widths(cls, tables: Sequence[Any]) -> None:
        """Choose the widths of all tables: those of the least held-out loss that fit into the bytes of before."""
        codecs: list[ColumnsCodec] = [stages.codec for stages in tables]
        first = codecs[0].columns

        def loss(widths: Widths) -> float:
            for codec, width in zip(codecs, widths, strict=True):
                codec.width.fill_(width)
            return sum(float(tables[0]._validate(number)) for number in range(first.batches)) / first.batches

        room = sum(codec.rows * codec.columns.width for codec in codecs)
        choices = [codec.columns.candidates for codec in codecs]
        search = WidthSearch([codec.rows for codec in codecs], choices, room, first.seed)
        for codec, width in zip(codecs, search.run(loss, first.generations), strict=True):
            codec.choose(width)


@stages_of.register
def _(part: NarrowRowsCodec, site: Site) -> TableStages:
    kind = MixtureStages if isinstance(part.first, MixtureCodec) else RandomStages
    return kind(part.first, site, MaskStages(part.mask, site))


@stages_of.register
def _(part: MixtureCodec, site: Site) -> TableStages:
    return MixtureStages(part, site)


@stages_of.register
def _(part: ColumnsCodec, site: Site) -> TableStages:
    return RandomStages(part, site)
