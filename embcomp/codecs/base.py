"""What every codec promises: the training form gives the vectors of the served form.

A `Coding` is a frozen dataclass of numbers (bits, kind of step), so that a planner can price it. Its `module` is a
`Codec`, which holds the small parameters that are learned (steps, code books). The rows themselves stay in a plain
table, which torch, torchrec and FBGEMM hold, shard and train as any other.
"""

import abc
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from embcomp import configs
from embcomp.ops.grid import RowGrid
from embcomp.tracing import one_node


class Coded(NamedTuple):
    """Rows as they are served: `codes` uint8 [rows, dim] below 2^bits, and what decodes them, by name."""

    codes: Tensor
    bits: int
    constants: dict[str, Tensor]


CODINGS: dict[str, type["Coding"]] = {}
configs.register("coding", CODINGS)


class Coding(abc.ABC):
    """How the rows of a store are coded. Subclasses are frozen dataclasses of plain numbers."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        CODINGS[cls.__name__] = cls

    def columns(self, dim: int) -> int:
        """How many columns each row holds beside its `dim` values."""
        return 0

    def row_nbytes(self, dim: int, float_bytes: int) -> int:
        """Bytes of a row in the training form."""
        return (dim + self.columns(dim)) * float_bytes

    @abc.abstractmethod
    def nbytes(self, rows: int, dim: int, float_bytes: int) -> int:
        """Bytes of the codec's parameters and buffers in the training form, the rows left out."""

    @abc.abstractmethod
    def served_nbytes(self, rows: int, dim: int) -> int:
        """Bytes of the served form: codes and all that decodes them."""

    @abc.abstractmethod
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
        """Vectors of a table as it is served, in plain torch wherever calls are recorded (torch.export).

        Args:
            packed: the codes of all rows, from `embcomp.ops.packed_rows.pack_rows`.
            dim: the width of a vector.
            constants: those of `Coded`.
            rows: int64 [N].
            offsets: int64 [bags + 1], to pool bags of rows; without them each row comes out by itself.
            weights: float32 [N], a factor for each row.
            mode: "sum", "mean" or "max".

        Returns:
            float32 [N, dim], or [bags, dim].
        """

    @abc.abstractmethod
    def module(self, rows: int, dim: int, device: Any = None, dtype: torch.dtype | None = None) -> "Codec":
        """The codec of a store of this size, its parameters not yet fitted to any rows."""


class Codec(nn.Module, abc.ABC):
    """Decodes stored rows into the vectors that will be served, with gradients for both the rows and itself.

    A pure function of the rows and its parameters: equal tables give equal vectors, in training and in evaluation,
    whoever wrote the rows. What it needs to know of the table as a whole is measured first, in sums that add up over
    shards.

    Attributes:
        coding: the configuration.
        rows: how many rows the table has.
        dim: the width of a vector.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            cls.forward = one_node(vars(cls)["forward"])

    def __init__(self, coding: Coding, rows: int, dim: int) -> None:
        super().__init__()
        self.coding, self.rows, self.dim = coding, rows, dim

    @property
    def served_nbytes(self) -> int:
        """Bytes of the served form of the whole table."""
        return self.coding.served_nbytes(self.rows, self.dim)

    def measure(self, stored: Tensor, first: int = 0) -> Tensor | None:
        """Sum over rows of the table that follow each other, float64, which add up over the parts of a table.

        Args:
            stored: [n, width] values of the rows first .. first + n - 1.
            first: the number of the first row.

        Returns:
            Whatever `forward` needs to know of the whole table; None where that is nothing.
        """
        return None

    @abc.abstractmethod
    def forward(self, stored: Tensor, rows: Tensor, measured: Tensor | None) -> Tensor:
        """Vectors as they will be served.

        Args:
            stored: [..., width] values read from the table.
            rows: int64 [...], which rows they are.
            measured: `measure` of the whole table.

        Returns:
            [..., dim], with straight-through gradients where values are rounded.
        """

    def row_grid(self, measured: Tensor | None) -> RowGrid | None:
        """What `forward` does now, for look-ups that round while they read; None where it is more than that."""
        return None

    def decode_table(self, stored: Tensor) -> Tensor:
        """The vectors of a whole table, [rows, width] -> [rows, dim]."""
        return self(stored, torch.arange(stored.shape[0], device=stored.device), self.measure(stored))

    def values(self, stored: Tensor) -> Tensor:
        """The floats of a whole table, [rows, width] -> [rows, dim]: a view where floats are what is stored."""
        return stored[:, : self.dim]

    @abc.abstractmethod
    def fit_(self, stored: Tensor, values: Tensor | None = None) -> None:
        """Fit the parameters to the rows of a whole trained table, [rows, width], without training.

        Columns beside the values, where there are some, are filled in place; so are rows that are no floats.

        Args:
            stored: the rows.
            values: what they are to hold, [rows, dim], where that was written to no view of them.
        """

    @abc.abstractmethod
    def reset_parameters(self) -> None:
        """Set the parameters to what training starts from."""

    @abc.abstractmethod
    def code(self, stored: Tensor) -> Coded:
        """The served form of a whole table, [rows, width]; it decodes to `decode_table(stored)` bit for bit."""


def coded_tables(module: nn.Module) -> Iterator[tuple[Tensor, Codec]]:
    """The rows with a codec that a module and those inside it hold, [rows, width] each, and their codecs; each once."""
    seen: set[int] = set()
    for part in module.modules():
        if not callable(getattr(part, "coded_tables", None)):
            continue
        for weight, codec in part.coded_tables():  # pyright: ignore[reportCallIssue]
            if id(codec) not in seen:
                seen.add(id(codec))
                yield weight, codec
