"""Methods around narrow tables, whose vectors a combiner widens."""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from embcomp.methods.around import Around, settings_around
from embcomp.methods.base import Combiner, Ladder, Plan, Sizes, Table, TablePlan, config_around

_BLOCK = 1 << 16  # vectors at a time


class Narrow(Around, registered=False):
    """A method whose tables read those of another method that are only as wide as one of its settings.

    Attributes:
        narrowed_by: the name of the setting that is the width of the narrow tables.
    """

    narrowed_by: ClassVar[str]

    @abc.abstractmethod
    def widened(self, inner: Combiner, width: int, embedding_dim: int) -> Combiner:
        """Make the combiner of a table from that of its narrow table and the width of the latter's vectors."""

    def widened_sizes(self, narrow: Sizes, tables: Sequence[Table]) -> Sizes:
        """Return the sizes with what these combiners store; by default nothing."""
        return narrow

    def narrow(self, tables: Sequence[Table]) -> list[Table]:
        """Return the narrow tables.

        Raises:
            ValueError: a table is narrower than they are.
        """
        setting, width = self.narrowed_by, getattr(self, self.narrowed_by)
        for table in tables:
            if width > table.embedding_dim:
                raise ValueError(
                    f"table {table.name!r}: {setting} {width} is above its embedding_dim {table.embedding_dim}; "
                    f"choose a lower {setting}, or leave the table out"
                )
        return [dataclasses.replace(table, embedding_dim=width) for table in tables]

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        inner = self.of.plan(self.narrow(tables), group)
        plans = []
        for table, inner_plan in zip(tables, inner.tables, strict=True):
            width = inner.embedding_dim(inner_plan)
            inner_plan.encoder.config = config_around(self.config(), inner_plan, table)
            inner_plan.encoder.table = table  # whose vectors come out in the end
            combiner = self.widened(inner_plan.combiner, width, table.embedding_dim)
            plans.append(TablePlan(table, inner_plan.encoder, inner_plan.chunks, combiner))
        return Plan(inner.stores, plans)

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        return self.widened_sizes(self.of.sizes(self.narrow(tables), group), tables)

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return a ladder of the widths of narrow tables, or with a given width that of the method inside.

        Args:
            tables: the tables to compress together.
            nbytes: the budget in bytes.
            fixed: settings of this method; `of`, a configuration, or with a given width also the class or the name of
                the method inside (by default `Full`); and settings of that method.
        """
        if cls.narrowed_by not in fixed:

            def make(width: int) -> Self:
                return cls(**{cls.narrowed_by: width}, **fixed)

            most = min(table.embedding_dim for table in tables)
            return Ladder(make, lambda width: make(width).sizes(tables), most=most)
        inner, own, fixed = settings_around(cls, fixed)
        outer = cls(**own)
        inside = inner.ladder(outer.narrow(tables), nbytes, **inner.checked_settings(fixed))
        return inside.around(
            lambda of: dataclasses.replace(outer, of=of), lambda sizes: outer.widened_sizes(sizes, tables)
        )


@torch.no_grad()
def draw_map_(matrix: Tensor) -> None:
    """Draw columns with sum 1 and norm 1 in place, [rank, width]: mapped rows keep their mean and deviation."""
    nn.init.normal_(matrix, std=len(matrix) ** -0.5)
    matrix.sub_(matrix.mean(0)).add_(1 / len(matrix))


@torch.no_grad()
def principal_directions(vectors: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the directions of largest variance around 0 of weighted vectors, by a singular value decomposition.

    Args:
        vectors: the vectors, [n, width].
        counts: the weight of each vector, [n].

    Returns:
        The weighted sums of squares, float64 [width], and the orthonormal directions as columns, float64 [width,
        width]; that of the largest variance first.
    """
    gram = torch.zeros(2 * vectors.shape[1:], dtype=torch.float64, device=vectors.device)
    for rows, weigh in zip(vectors.split(_BLOCK), counts.split(_BLOCK), strict=True):
        gram += rows.double().t() @ (rows.double() * weigh.double().unsqueeze(1))
    values, directions = torch.linalg.eigh(gram)
    return values.flip(0), directions.flip(1)


@torch.no_grad()
def equalizing(variances: Tensor) -> Tensor:
    """Return a rotation after which uncorrelated columns of these variances all have the mean of them.

    Each turn of a column below the mean and one above it brings the first to the mean (Bendel and Mickey 1978), so
    that n - 1 turns are enough.

    Args:
        variances: the variances, float64 [n].

    Returns:
        The rotation, float64 [n, n], for rows of values on its left.

    Example:
        >>> import torch
        >>> turn = equalizing(torch.tensor([5.0, 1.0, 0.0], dtype=torch.float64))
        >>> (turn.T @ torch.diag(torch.tensor([5.0, 1.0, 0.0], dtype=torch.float64)) @ turn).diagonal().round()
        tensor([2., 2., 2.], dtype=torch.float64)
    """
    covariance, mean = torch.diag(variances.double()), float(variances.double().mean())
    turn = torch.eye(len(variances), dtype=torch.float64, device=variances.device)
    for _ in range(len(variances) - 1):
        low, high = int(covariance.diagonal().argmin()), int(covariance.diagonal().argmax())
        below, above = float(covariance[low, low]) - mean, float(covariance[high, high]) - mean
        if below >= 0 or above <= 0:  # all are the mean, up to rounding
            break
        both = float(covariance[low, high])
        tangent = (math.sqrt(both * both - below * above) - both) / above
        cosine = 1 / math.sqrt(1 + tangent * tangent)
        pair, sine = [low, high], tangent * cosine
        plane = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64, device=variances.device)
        covariance[:, pair] = covariance[:, pair] @ plane
        covariance[pair] = plane.T @ covariance[pair]
        turn[:, pair] = turn[:, pair] @ plane
    return turn
