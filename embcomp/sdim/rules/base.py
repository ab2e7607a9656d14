"""What a rule of SDIM is: how the events that agree with a candidate become one vector."""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Read = Callable[[Tensor], Tensor]
"""Rows of buckets, float [B, groups, 2^hash_width, K] -> the sum of those that each candidate reads, one of each group:
float [B, C, K]."""


@dataclass(frozen=True)
class Rule(abc.ABC):
    """How buckets, pairs of events and candidates, or all events become the vector of a candidate.

    Attributes:
        hash_width: bits of a group.
        weight: float [hash_width + 1], the learned weights of a rule that has any.
    """

    hash_width: int
    weight: Tensor | None = None

    @classmethod
    def start(cls, hash_width: int) -> Tensor | None:
        """The weights before training, float [hash_width + 1]; None for a rule without.

        Raises:
            ValueError: groups of so many bits do not go with this rule.
        """
        return None

    @abc.abstractmethod
    def of_buckets(self, sums: Tensor, counts: Tensor, read: Read) -> Tensor:
        """The vectors of candidates from the buckets of their histories, float [B, C, D].

        Args:
            sums: float [B, groups, 2^hash_width, D].
            counts: float [B, groups, 2^hash_width], how many events each sum holds.
            read: the look-up of the candidates' buckets.
        """

    @abc.abstractmethod
    def query_settings(self, counts: Tensor) -> Mapping[str, Any]:
        """The arguments by which `embcomp.ops.buckets.query` does what `of_buckets` does, without gradients."""

    @abc.abstractmethod
    def expected(self, sums: Tensor, total: Tensor, events: Tensor) -> Tensor:
        """The vectors of candidates with infinitely many hashes, float [B, C, D].

        Args:
            sums: float [B, C, D], of the events, each times its `event_weight`.
            total: float [B, C, 1], the sum of these weights.
            events: int64 [B], how many events each history has.
        """

    def event_weight(self, angle: Tensor) -> Tensor:
        """How much an event counts at an angle from the candidate, given in parts of pi: how likely they collide."""
        return (1 - angle) ** self.hash_width


class CollisionRule(Rule):
    """A rule by which whole collisions alone count, so that few candidates need no buckets."""

    @abc.abstractmethod
    def of_groups(self, sums: Tensor, counts: Tensor) -> Tensor:
        """The vectors of candidates, float [B, C, D], from what agrees with each in each group.

        Args:
            sums: float [B, C, groups, D].
            counts: float [B, C, groups], how many events each sum holds.
        """

    @abc.abstractmethod
    def of_pairs(self, agree: Tensor, vectors: Tensor) -> Tensor:
        """The vectors of candidates, float [B, C, D], from all pairs.

        Args:
            agree: [B, C, groups, L] of the type of `vectors`: 1 where an event is in the candidate's bucket, else 0.
            vectors: float [B, L, D], the events.
        """


def divided(sums: Tensor, counts: Tensor) -> Tensor:
    """Sums / counts, and zero where nothing was counted."""
    return (sums / torch.where(counts > 0, counts, 1.0)).to(sums.dtype)
