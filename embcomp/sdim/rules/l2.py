"""The rule "l2", that of the paper: the direction of each group's sum."""

from typing import Any

from torch import Tensor

from embcomp.ops.buckets import fast, unit_rows
from embcomp.sdim.buckets import unit
from embcomp.sdim.rules.base import CollisionRule, Read


class L2(CollisionRule):
    """The mean over the groups of sums divided by their length (Cao et al. 2022, arXiv 2205.10249, section 4)."""

    def of_buckets(self, sums: Tensor, counts: Tensor, read: Read) -> Tensor:
        groups = sums.shape[1]
        return read(unit_rows(sums, 1 / groups) if fast(sums) else unit(sums) / groups)

    def query_settings(self, counts: Tensor) -> dict[str, Any]:
        return {"unit": True}

    def of_groups(self, sums: Tensor, counts: Tensor) -> Tensor:
        return unit_rows(sums, 1 / sums.shape[2]).sum(2)

    def of_pairs(self, agree: Tensor, vectors: Tensor) -> Tensor:
        sums = agree.flatten(1, 2) @ vectors
        return unit(sums).view(*agree.shape[:3], vectors.shape[2]).mean(2)

    def expected(self, sums: Tensor, total: Tensor, events: Tensor) -> Tensor:
        return unit(sums)
