"""The contract of codecs: the training form gives the vectors of the served form.

A `Coding` is a frozen dataclass of numbers (bits, kind of step), so that a planner can price it. Its `module` is a
`Codec`, which holds the small learned parameters (steps, code books). The rows themselves stay in a plain table, which
torch, torchrec and FBGEMM hold, shard and train like any other.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from embcomp import configs
from embcomp.ops.bags import pool_rows
from embcomp.ops.grid import RowGrid
from embcomp.tracing import one_node


class Coded(NamedTuple):
    """Rows in the served form: `codes`, uint8 [rows, dim] below 2^bits, and the named constants that decode them."""

    codes: Tensor
    bits: int
    constants: dict[str, Tensor]


CODINGS: dict[str, type["Coding"]] = {}
configs.register("coding", CODINGS)


class Coding(abc.ABC):
    """The coding of a store's rows. Subclasses are frozen dataclasses of plain numbers."""

    bound: ClassVar[bool] = False
    """True if `served_nbytes` is a bound, because the served form of some rows takes less."""
    rounds: ClassVar[bool] = True
    """False if the values that are served are floats, and the coding only says which of them are kept."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        CODINGS[cls.__name__] = cls

    def columns(self, dim: int) -> int:
        """The number of columns of a row beside its `dim` values."""
        return 0

    def row_nbytes(self, dim: int, float_bytes: int) -> int:
        """The bytes of a row in the training form."""
        return (dim + self.columns(dim)) * float_bytes

    @abc.abstractmethod
    def nbytes(self, rows: int, dim: int, float_bytes: int) -> int:
        """The bytes of the codec's parameters and buffers in the training form, without the rows."""

    @abc.abstractmethod
    def served_nbytes(self, rows: int, dim: int) -> int:
        """The bytes of the served form: codes and constants."""

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
        """Decode vectors of a served table; in plain torch if calls are recorded (torch.export).

        Args:
            packed: the codes of all rows, from `embcomp.ops.packed_rows.pack_rows`.
            dim: the width of a vector.
            constants: the constants of `Coded`.
            rows: the rows to read, int64 [N].
            offsets: the bounds of bags, int64 [bags + 1]; None returns each row by itself.
            weights: a factor for each row, float32 [N].
            mode: the pooling, "sum", "mean" or "max".

        Returns:
            The vectors, float32 [N, dim] or [bags, dim].
        """

    @abc.abstractmethod
    def module(self, rows: int, dim: int, device: Any = None, dtype: torch.dtype | None = None) -> "Codec":
        """Make the codec of a store of this size, not yet fitted to any rows."""


class Codec(nn.Module, abc.ABC):
    """A decoder of stored rows into the served vectors, with gradients for both the rows and its own parameters.

    It is a pure function of the rows and its parameters: equal tables give equal vectors, in training and in
    evaluation. Statistics of the whole table are measured first, as sums that can be added up over shards.

    Attributes:
        coding: the configuration.
        rows: the number of rows of the table.
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
        """The bytes of the served form of the whole table."""
        return self.coding.served_nbytes(self.rows, self.dim)

    def measure(self, stored: Tensor, first: int = 0) -> Tensor | None:
        """Measure statistics of consecutive rows, as float64 sums that can be added up over the parts of a table.

        Args:
            stored: the values of the rows first .. first + n - 1, [n, width].
            first: the index of the first row.

        Returns:
            The statistics that `forward` needs of the whole table; None if it needs none.
        """
        return None

    @abc.abstractmethod
    def forward(self, stored: Tensor, rows: Tensor, measured: Tensor | None) -> Tensor:
        """Decode stored rows into the vectors that will be served.

        Args:
            stored: the values read from the table, [..., width].
            rows: the indices of these rows, int64 [...].
            measured: the result of `measure` for the whole table.

        Returns:
            The vectors, [..., dim], with straight-through gradients for rounded values.
        """

    def row_grid(self, measured: Tensor | None) -> RowGrid | None:
        """Return the grid to which `forward` rounds, for look-ups that round as they read; None if it does more."""
        return None

    def decode_table(self, stored: Tensor) -> Tensor:
        """Decode a whole table, [rows, width] -> [rows, dim]."""
        return self(stored, torch.arange(stored.shape[0], device=stored.device), self.measure(stored))

    def values(self, stored: Tensor) -> Tensor:
        """Return the floats of a whole table, [rows, width] -> [rows, dim]; a view if floats are stored."""
        return stored[:, : self.dim]

    @abc.abstractmethod
    def fit_(self, stored: Tensor, values: Tensor | None = None) -> None:
        """Fit the parameters to the rows of a whole trained table, [rows, width], without training.

        Columns beside the values are filled in place, and so are rows that are not floats.

        Args:
            stored: the rows, [rows, width].
            values: the values for the rows, [rows, dim], if they could not be written into a view of `stored`.
        """

    @classmethod
    def fit_together_(cls, tables: Sequence[tuple[Any, Tensor]]) -> None:
        """Fit what tables share, after each has been fitted by itself; nothing by default.

        Args:
            tables: the codecs of this kind, each with the rows of its whole table, [rows, width].
        """

    @abc.abstractmethod
    def reset_parameters(self) -> None:
        """Set the parameters to their initial values."""

    @abc.abstractmethod
    def code(self, stored: Tensor) -> Coded:
        """Return the served form of a whole table, [rows, width]; it decodes to `decode_table(stored)` bit for bit."""


def weighed(vectors: Tensor, offsets: Tensor | None, weights: Tensor | None, mode: str) -> Tensor:
    """Return decoded vectors [N, D] times their weights [N], or pooled by bag, [B, D]: the last step of `decode`."""
    if offsets is None:
        return vectors if weights is None else vectors * weights.unsqueeze(1)
    order = torch.arange(vectors.shape[0], device=vectors.device)
    return pool_rows(vectors, order, offsets, weights, mode)
