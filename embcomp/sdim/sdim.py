"""SDIM: attention over a history of any length at a constant cost per candidate."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from embcomp.extra_state import from_state, to_state
from embcomp.ops.buckets import Histories, collide, fast, gather, query, scatter, sign_codes, words_for
from embcomp.ops.signatures import unpack
from embcomp.sdim.buckets import Buckets, read, segments, sum_jagged, sum_padded, unit
from embcomp.sdim.checks import check_buckets, check_candidates, check_signatures, check_sizes, check_vectors
from embcomp.sdim.projection import PROJECTIONS
from embcomp.sdim.rules import RULES, CollisionRule, Rule
from embcomp.sdim.sequences import Sequences, check_device, taken


class SDIM(nn.Module):
    """Sampling-based deep interest modelling (Cao et al. 2022, arXiv 2205.10249, section 4).

    SimHash gives every vector `num_hashes` fixed bits, in groups of `hash_width`. In each group, the events whose bits
    equal those of the candidate are added up; an event thus counts with probability (1 - angle / pi)^hash_width. A
    history is stored as `num_hashes / hash_width` groups of `2^hash_width` sums (`encode`), and a candidate reads one
    sum of each group (`query`), whatever the number of events.

    Args:
        embedding_dim: the width D of items.
        num_hashes: the number of bits, m; a multiple of `hash_width`.
        hash_width: the number of bits of a group, tau. With more bits only closer events count.
        seed: the seed of the hashes. They are buffers, saved with the model.
        rule: "l2", the paper's: each sum is divided by its length, then the groups are averaged. "mean": the sums of
            all groups together are divided by the number of events that they hold: an average of the history, weighted
            by how often each event agrees. "kernel": an event counts by the number of a group's bits that differ from
            the candidate's, with a learned weight for each number, 0 .. `hash_width`, and the sum is divided by the
            number of events. All these weights start at 1, which is average pooling. A candidate reads the same number
            of rows, of the same buckets, with each rule.
        projection: "dense", a Gaussian matrix, or "hadamard", signs and Hadamard transforms in O(D log D).

    Raises:
        ValueError: a size is below 1, `num_hashes` is not a multiple of `hash_width`, or the rule or the projection is
            unknown.

    Example:
        >>> import torch
        >>> from embcomp.sdim import SDIM
        >>> items = torch.nn.Embedding(1000, 32)
        >>> sdim = SDIM(32)
        >>> history = torch.randint(0, 1000, (2, 50))
        >>> mask = torch.arange(50) < torch.tensor([[50], [7]])  # the second user has 7 events
        >>> sdim(items(torch.tensor([1, 2])), items(history), mask).shape
        torch.Size([2, 32])
        >>> buckets = sdim.encode(items(history), mask)  # once for each user, then any number of candidates
        >>> sdim.query(items(torch.randint(0, 1000, (2, 500))), buckets).shape
        torch.Size([2, 500, 32])
    """

    def __init__(
        self,
        embedding_dim: int,
        num_hashes: int = 48,
        hash_width: int = 3,
        seed: int = 0,
        *,
        rule: Literal["l2", "mean", "kernel"] = "l2",
        projection: Literal["dense", "hadamard"] = "dense",
    ) -> None:
        super().__init__()
        check_sizes(embedding_dim, num_hashes, hash_width)
        if rule not in RULES:
            raise ValueError(f"SDIM: rule must be one of {', '.join(RULES)}, got {rule!r}")
        weight = RULES[rule].start(hash_width)
        if projection not in PROJECTIONS:
            raise ValueError(f"SDIM: projection must be one of {', '.join(PROJECTIONS)}, got {projection!r}")
        self.embedding_dim = embedding_dim
        self.num_hashes = num_hashes
        self.hash_width = hash_width
        self.groups = num_hashes // hash_width
        self.width = 2**hash_width
        self.rule = rule
        self.kind = projection
        self.projection = PROJECTIONS[projection](embedding_dim, num_hashes, seed)
        if weight is not None:
            self.weight = nn.Parameter(weight)

    def forward(
        self,
        candidates: Tensor,
        sequence: Tensor,
        mask: Tensor | None = None,
        offsets: Tensor | None = None,
        *,
        places: Tensor | None = None,
        expected: bool = False,
        candidate_signatures: Tensor | None = None,
        sequence_signatures: Tensor | None = None,
    ) -> Tensor:
        """Pool the history of each row, for each of its candidates.

        Args:
            candidates: float [B, D], or [B, C, D].
            sequence: the events, float [B, L, D]; with `offsets`, [T, D], the histories concatenated.
            mask: bool [B, L], True for events; None if all are events.
            offsets: the begins and ends of the histories in a jagged `sequence`, int64 [B + 1].
            places: the position in `sequence` of the vector of each event, int64 [B, L] (with `offsets`, [T]).
                `sequence` is then [N, D], the vectors of the distinct items; each is hashed once and, on CPU, added up
                without a copy.
            expected: return the limit of infinitely many hashes instead, at the cost of attention: exact for the rules
                "mean" and "kernel"; for "l2" the weighted sum divided by its length, as in the paper, whose direction
                the groups approach. Candidates get gradients only here, since signs have none.
            candidate_signatures: the signatures of the candidates, int64 [B, words] or [B, C, words], if they are known
                (see `ItemSignatures`).
            sequence_signatures: the signatures of the vectors of `sequence`, int64 [..., words], if they are known.

        Returns:
            The pooled histories, float, of the shape of `candidates`. Zeros if no event agrees or the history is empty.

        Raises:
            ValueError: shapes or types do not fit.
            IndexError: a place is outside of `sequence`.
        """
        check_candidates(candidates, self.embedding_dim)
        several = candidates.dim() == 3
        if candidate_signatures is not None:
            candidate_signatures = self._signatures_of(candidates, candidate_signatures)
        if not several:
            candidates = candidates.unsqueeze(1)
            candidate_signatures = None if candidate_signatures is None else candidate_signatures.unsqueeze(1)
        given = self._checked(Sequences(sequence, mask, offsets, places, sequence_signatures))
        check_device(candidates, "candidates", sequence)
        if len(candidates) != given.batch:
            raise ValueError(f"SDIM: {len(candidates)} rows of candidates, {given.batch} histories")
        rule = self._weighted_rule()
        if expected:
            pooled = self._expected(rule, candidates, *given.events(), given.offsets)
        elif isinstance(rule, CollisionRule) and self._skips_buckets(candidates.shape[1], given):
            asked = self._signatures_of(candidates, candidate_signatures)
            pooled = (
                self._pool_collisions(rule, asked, given) if fast(sequence) else self._pool_pairs(rule, asked, given)
            )
        else:  # building all buckets is cheaper than comparing all pairs
            pooled = self.query(candidates, self._buckets_of(given), candidate_signatures)
        return pooled if several else pooled.squeeze(1)

    def encode(
        self,
        sequence: Tensor,
        mask: Tensor | None = None,
        offsets: Tensor | None = None,
        *,
        places: Tensor | None = None,
        signatures: Tensor | None = None,
    ) -> Buckets:
        """Return the buckets of B histories: sums [B, groups, 2^hash_width, D] and counts. See `forward`."""
        return self._buckets_of(self._checked(Sequences(sequence, mask, offsets, places, signatures)))

    def query(self, candidates: Tensor, buckets: Buckets, signatures: Tensor | None = None) -> Tensor:
        """Pool the buckets of each row for its candidates, [B, D] or [B, C, D]; the result has the same shape.

        This is one look-up of `groups` rows for each candidate (`embedding_bag`). The buckets of a single user are a
        batch of one: candidates [1, C, D].
        """
        check_candidates(candidates, self.embedding_dim)
        if candidates.dim() == 2:
            known = None if signatures is None else self._signatures_of(candidates, signatures).unsqueeze(1)
            return self.query(candidates.unsqueeze(1), buckets, known).squeeze(1)
        check_buckets(buckets, candidates, (self.groups, self.width, self.embedding_dim))
        sums, counts, rule = buckets.sums, buckets.counts.float(), self._weighted_rule()
        trained = sums.requires_grad or (rule.weight is not None and rule.weight.requires_grad)
        if not fast(sums):
            codes = self._codes_of(candidates, signatures)
            return rule.of_buckets(sums, counts, lambda rows: read(rows, codes))
        if fast(candidates) and not (torch.is_grad_enabled() and trained):  # in one call
            matrix = getattr(self.projection, "matrix", None)
            known = None
            if signatures is not None or matrix is None:
                known = self._signatures_of(candidates, signatures)
            return query(candidates, known, matrix, sums, self.hash_width, **rule.query_settings(counts))
        asked = self._signatures_of(candidates, signatures)
        readers = self._histories(asked, _starts(*asked.shape[:2]))
        return rule.of_buckets(sums, counts, lambda rows: gather(rows, readers).unflatten(0, candidates.shape[:2]))

    def signatures(self, vectors: Tensor) -> Tensor:
        """Return the packed buckets of vectors: float [..., D] -> int64 [..., words], with up to 63 bits in a word."""
        check_vectors(vectors, "vectors", self.embedding_dim)
        return self.projection.signatures(vectors, self.hash_width)  # pyright: ignore[reportCallIssue]

    def collision_probability(self, cosine: Tensor) -> Tensor:
        """Return the probability that vectors of this cosine agree in a group: (1 - arccos(cosine) / pi)^hash_width."""
        return (1 - _angle(cosine)) ** self.hash_width

    def event_weight(self, cosine: Tensor) -> Tensor:
        """Return the weight of an event with infinitely many hashes, by its cosine to the candidate.

        It is the collision probability; with the rule "kernel", `sum_d weight[d] P(d bits of a group differ)`.
        """
        return self._weighted_rule().event_weight(_angle(cosine))

    def _weighted_rule(self) -> Rule:
        """Make the rule with the present weights: modules replace their parameters when they move."""
        return RULES[self.rule](self.hash_width, getattr(self, "weight", None))

    def _signatures_of(self, vectors: Tensor, signatures: Tensor | None) -> Tensor:
        """Return the signature of each vector, checked if it is given: float [..., D] -> int64 [..., words]."""
        if signatures is None:
            return self.signatures(vectors)
        check_signatures(signatures, vectors, words_for(self.groups, self.hash_width))
        return signatures

    def _codes_of(self, vectors: Tensor, signatures: Tensor | None) -> Tensor:
        """Return the bucket of each vector in each group: float [..., D] -> int64 [..., groups]."""
        if signatures is not None:
            return unpack(self._signatures_of(vectors, signatures), self.groups, self.hash_width)
        with torch.no_grad():
            return sign_codes(self.projection(vectors), self.hash_width)

    def _event_codes(self, given: Sequences) -> Tensor:
        """Return the bucket of each event in each group: int64 [B, L, groups], or [T, groups]."""
        codes = self._codes_of(given.vectors, given.signatures)
        return codes if given.places is None else taken(codes, given.places)

    def _buckets_of(self, given: Sequences) -> Buckets:
        if fast(given.vectors):
            return Buckets(*scatter(*self._rows_and_histories(given)))
        (vectors, mask), codes = given.events(), self._event_codes(given)
        if given.offsets is None:
            return sum_padded(codes, vectors, mask, self.width)
        return sum_jagged(codes, vectors, segments(given.offsets, len(vectors)), given.batch, self.width)

    def _skips_buckets(self, candidates: int, given: Sequences) -> bool:
        """Return whether comparing every event with each candidate is cheaper than building all buckets."""
        if fast(given.vectors):
            return candidates <= self.width // 2
        return candidates <= self.width and given.offsets is None

    def _pool_collisions(self, rule: CollisionRule, asked: Tensor, given: Sequences) -> Tensor:
        """Add up, event by event, only the buckets that candidates of these signatures read."""
        return rule.of_groups(*collide(*self._rows_and_histories(given), asked))

    def _pool_pairs(self, rule: CollisionRule, asked: Tensor, given: Sequences) -> Tensor:
        """Do the work of `_pool_collisions` in torch, by products with zeros and ones."""
        (vectors, mask), known = given.events(), self._event_codes(given)
        codes = unpack(asked, self.groups, self.hash_width)
        agree = codes.unsqueeze(-1) == known.transpose(1, 2).unsqueeze(1)  # [B, C, groups, L]
        return rule.of_pairs((agree & mask[:, None, None, :]).to(vectors.dtype), vectors)

    def _expected(
        self, rule: Rule, candidates: Tensor, sequence: Tensor, mask: Tensor, offsets: Tensor | None
    ) -> Tensor:
        """Pool histories as infinitely many hashes would, by the angles of all pairs."""
        asked, known = unit(candidates), unit(sequence)
        if offsets is None:
            weights = rule.event_weight(_angle(asked @ known.transpose(1, 2))) * mask.unsqueeze(1)
            return rule.expected(weights @ sequence, weights.sum(-1, keepdim=True), mask.sum(1))
        row = segments(offsets, len(sequence))
        weights = rule.event_weight(_angle(torch.einsum("tcd,td->tc", asked[row], known))).unsqueeze(-1)
        sums = torch.zeros_like(candidates).index_add(0, row, weights * sequence.unsqueeze(1))
        total = weights.new_zeros(*candidates.shape[:2], 1).index_add(0, row, weights)
        return rule.expected(sums, total, offsets.diff())

    def _rows_and_histories(self, given: Sequences) -> tuple[Tensor, Histories]:
        """Return vectors [N, D] and the histories made of them, for compiled functions, which skip masked events."""
        offsets = _starts(*given.shape) if given.offsets is None else given.offsets
        mask, places = (None if tensor is None else tensor.flatten() for tensor in (given.mask, given.places))
        known = self._signatures_of(given.vectors, given.signatures)
        return given.vectors.reshape(-1, self.embedding_dim), self._histories(known, offsets, mask, places)

    def _histories(
        self, signatures: Tensor, offsets: Tensor, mask: Tensor | None = None, places: Tensor | None = None
    ) -> Histories:
        return Histories(signatures.flatten(0, -2), offsets, self.groups, self.hash_width, mask, places)

    def _checked(self, given: Sequences) -> Sequences:
        check_vectors(given.vectors, "sequence", self.embedding_dim)
        return given.check()

    def settings(self) -> dict[str, Any]:
        """Return the settings that decide the buckets, beside the projection itself; they are saved with the model."""
        return {
            "embedding_dim": self.embedding_dim,
            "num_hashes": self.num_hashes,
            "hash_width": self.hash_width,
            "projection": self.kind,
        }

    def get_extra_state(self) -> Tensor:
        return to_state({"module": "SDIM", **self.settings()})  # "module" tells checkpoints that this state is SDIM's

    def set_extra_state(self, state: Tensor) -> None:
        """Do nothing: `_load_from_state_dict` has compared the state."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(f"{prefix}_extra_state")
        if saved is not None:  # before torch compares shapes, which can be equal for two hash_widths
            settings, mine = from_state(saved, "SDIM"), self.settings()
            if differ := [
                f"{k}: saved {settings.get(k)!r}, here {v!r}" for k, v in mine.items() if settings.get(k) != v
            ]:
                raise ValueError(f"SDIM: the state was saved with another configuration ({'; '.join(differ)})")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"{self.embedding_dim}, num_hashes={self.num_hashes}, hash_width={self.hash_width}, rule={self.rule!r}"


def _angle(cosine: Tensor) -> Tensor:
    """Return the angle in parts of pi, in [0, 1]."""
    edge = 1 - torch.finfo(cosine.dtype).eps  # beyond it the gradient of arccos is infinite
    return cosine.clamp(-edge, edge).arccos() / math.pi


def _starts(batch: int, length: int) -> Tensor:
    """Return the begins and ends of histories of one length: int64 [batch + 1]."""
    return length * torch.arange(batch + 1, device="cpu")
