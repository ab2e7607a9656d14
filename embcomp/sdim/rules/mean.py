"""The rule "mean": the mean of the events that agree, over all groups together."""

from typing import Any

from torch import Tensor

from embcomp.sdim.rules.base import CollisionRule, Read, divided


class Mean(CollisionRule):
    """The sums of all groups, divided by the number of events that they hold."""

    def of_buckets(self, sums: Tensor, counts: Tensor, read: Read) -> Tensor:
        return divided(read(sums), read(counts.unsqueeze(-1)))

    def query_settings(self, counts: Tensor) -> dict[str, Any]:
        return {"counts": counts}

    def of_groups(self, sums: Tensor, counts: Tensor) -> Tensor:
        return divided(sums.sum(2), counts.sum(2).unsqueeze(-1))

    def of_pairs(self, agree: Tensor, vectors: Tensor) -> Tensor:
        weights = agree.sum(2)
        return divided(weights @ vectors, weights.sum(-1, keepdim=True))

    def expected(self, sums: Tensor, total: Tensor, events: Tensor) -> Tensor:
        return divided(sums, total)
