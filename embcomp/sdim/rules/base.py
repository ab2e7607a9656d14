"""The interface of SDIM's rules, which turn the events that agree with a candidate into one vector."""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Read = Callable[[Tensor], Tensor]
"""A function of the rows of buckets, float [B, groups, 2^hash_width, K], that adds up the row of each candidate in each
group: float [B, C, K]."""


@dataclass(frozen=True)
class Rule(abc.ABC):
    """A rule that turns buckets, pairs of events and candidates, or all events into the vector of a candidate.

    Attributes:
        hash_width: the number of bits of a group.
        weight: the learned weights of a rule that has any, float [hash_width + 1].
    """

    hash_width: int
    weight: Tensor | None = None

    @classmethod
    def start(cls, hash_width: int) -> Tensor | None:
        """Return the weights before training, float [hash_width + 1]; None for a rule without weights.

        Raises:
            ValueError: the rule does not take groups of so many bits.
        """
        return None

    @abc.abstractmethod
    def of_buckets(self, sums: Tensor, counts: Tensor, read: Read) -> Tensor:
        """Return the vectors of candidates, float [B, C, D], from the buckets of their histories.

        Args:
            sums: the bucket sums, float [B, groups, 2^hash_width, D].
            counts: the number of events in each sum, float [B, groups, 2^hash_width].
            read: the look-up of the candidates' buckets.
        """

    @abc.abstractmethod
    def query_settings(self, counts: Tensor) -> Mapping[str, Any]:
        """Return the arguments with which `embcomp.ops.buckets.query` computes `of_buckets`, without gradients."""

    @abc.abstractmethod
    def expected(self, sums: Tensor, total: Tensor, events: Tensor) -> Tensor:
        """Return the vectors of candidates with infinitely many hashes, float [B, C, D].

        Args:
            sums: the sums of the events, each times its `event_weight`, float [B, C, D].
            total: the sums of these weights, float [B, C, 1].
            events: the number of events of each history, int64 [B].
        """

    def event_weight(self, angle: Tensor) -> Tensor:
        """Return the weight of an event at an angle, in parts of pi, to the candidate: how likely they collide."""
        return (1 - angle) ** self.hash_width


class CollisionRule(Rule):
    """A rule that counts only events whose bits all agree, so that few candidates need no buckets."""

    @abc.abstractmethod
    def of_groups(self, sums: Tensor, counts: Tensor) -> Tensor:
        """Return the vectors of candidates, float [B, C, D], from the sums of the events that agree in each group.

        Args:
            sums: the sums of these events, float [B, C, groups, D].
            counts: the number of events in each sum, float [B, C, groups].
        """

    @abc.abstractmethod
    def of_pairs(self, agree: Tensor, vectors: Tensor) -> Tensor:
        """Return the vectors of candidates, float [B, C, D], from all pairs.

        Args:
            agree: 1 if an event is in the candidate's bucket, else 0: [B, C, groups, L], of the dtype of `vectors`.
            vectors: the vectors of the events, float [B, L, D].
        """


def divided(sums: Tensor, counts: Tensor) -> Tensor:
    """Return sums / counts, and zero where a count is zero."""
    return (sums / torch.where(counts > 0, counts, 1.0)).to(sums.dtype)
