"""SDIM: attention over a history of any length at a constant cost per candidate."""

import json
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from embcomp.ops.buckets import Events, collide, fast, gather, query, scatter, sign_codes, unit_rows, words_for
from embcomp.ops.checks import check_tensor
from embcomp.ops.signatures import unpack
from embcomp.sdim.buckets import Buckets, read, segments, sum_jagged, sum_padded, unit
from embcomp.sdim.projection import PROJECTIONS
from embcomp.sdim.sequences import Sequences, check_device, check_floats, taken

Rule = Literal["l2", "mean", "kernel"]
RULES = ("l2", "mean", "kernel")
_KERNEL_WIDTH = 8
"""The most bits of a group with the rule "kernel", whose matrix is 2^bits x 2^bits."""


class SDIM(nn.Module):
    """Sampling-based deep interest modelling (Cao et al. 2022, arXiv 2205.10249, section 4).

    SimHash gives every vector `num_hashes` fixed bits, in groups of `hash_width`. In each group, the events whose bits
    agree with the candidate's are added up; an event thus counts with probability (1 - angle / pi)^hash_width. A
    history is therefore `num_hashes / hash_width` groups of `2^hash_width` sums (`encode`), and a candidate reads one
    of each group (`query`), whatever the number of events.

    Args:
        embedding_dim: width D of items.
        num_hashes: bits, m; a multiple of `hash_width`.
        hash_width: bits of a group, tau. More of them look at closer events only.
        seed: another seed gives other hashes. They are buffers, saved with the model.
        rule: "l2", the paper's: each sum is divided by its length, then the groups are averaged. "mean": the sums of
            all groups together are divided by the number of events that they hold, an average of the history weighted
            by how often each event agrees, which keeps how much the groups found. "kernel": an event counts by how
            many of a group's bits differ from the candidate's, with a learned weight for each number of them, 0 ..
            `hash_width`, and the sum is divided by the number of events. All weights start at 1, which is average
            pooling. A candidate reads as many rows for each rule, and all read the same buckets.
        projection: "dense", a Gaussian matrix, or "hadamard", signs and Hadamard transforms in O(D log D).

    Raises:
        ValueError: sizes below 1, `num_hashes` no multiple of `hash_width`, an unknown rule or projection.

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
        rule: Rule = "l2",
        projection: Literal["dense", "hadamard"] = "dense",
    ) -> None:
        super().__init__()
        for name, value in (("embedding_dim", embedding_dim), ("num_hashes", num_hashes), ("hash_width", hash_width)):
            if value < 1:
                raise ValueError(f"SDIM: {name} must be at least 1, got {value}")
        if hash_width > 16:
            raise ValueError(f"SDIM: hash_width {hash_width} makes 2^{hash_width} buckets in a group; give at most 16")
        if num_hashes % hash_width:
            below = num_hashes // hash_width * hash_width
            near = " or ".join(str(n) for n in (below, below + hash_width) if n)
            raise ValueError(f"SDIM: num_hashes={num_hashes} is not a multiple of hash_width={hash_width}: give {near}")
        if rule not in RULES:
            raise ValueError(f"SDIM: rule must be one of {', '.join(RULES)}, got {rule!r}")
        if rule == "kernel" and hash_width > _KERNEL_WIDTH:
            raise ValueError(f"SDIM: rule 'kernel' takes a hash_width of at most {_KERNEL_WIDTH}, got {hash_width}")
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
        if rule == "kernel":
            self.weight = nn.Parameter(torch.ones(hash_width + 1))

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
        """The history of each row, as each of its candidates sees it.

        Args:
            candidates: float [B, D], or [B, C, D].
            sequence: float [B, L, D]; with `offsets`, [T, D], the histories end to end.
            mask: bool [B, L], True for events; None where all are.
            offsets: int64 [B + 1], where each history begins and ends in a jagged `sequence`.
            places: int64 [B, L] (with `offsets`, [T]), where the vector of each event is in `sequence`, which then is
                [N, D]: the vectors of the distinct items, each hashed once and, on CPU, added up from where it is.
            expected: the limit of infinitely many hashes instead, at the cost of attention: exact for the rules "mean"
                and "kernel"; for "l2" the weighted sum divided by its length, as in the paper, whose direction the
                groups approach. Candidates get gradients here alone, since signs have none.
            candidate_signatures: int64 [B, words] or [B, C, words], where they are known (see `ItemSignatures`).
            sequence_signatures: int64, one for each vector of `sequence`, where they are known.

        Returns:
            float, of the shape of `candidates`. Zeros where no event agrees, and for a history without events.

        Raises:
            ValueError: shapes or types that do not fit.
            IndexError: a place outside of `sequence`.
        """
        self._check_candidates(candidates)
        several = candidates.dim() == 3
        if candidate_signatures is not None:
            candidate_signatures = self._signed(candidates, candidate_signatures)
        if not several:
            candidates = candidates.unsqueeze(1)
            candidate_signatures = None if candidate_signatures is None else candidate_signatures.unsqueeze(1)
        given = self._checked(Sequences(sequence, mask, offsets, places, sequence_signatures))
        check_device(candidates, "candidates", sequence)
        if len(candidates) != given.batch:
            raise ValueError(f"SDIM: {len(candidates)} rows of candidates, {given.batch} histories")
        if expected:
            pooled = self._expected(candidates, *given.events(), given.offsets)
        elif self._skips_buckets(candidates.shape[1], given):
            asked = self._signed(candidates, candidate_signatures)
            pooled = self._collide(asked, given) if fast(sequence) else self._attend(asked, given)
        else:  # from here on buckets are fewer than what all candidates read
            pooled = self.query(candidates, self._encode(given), candidate_signatures)
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
        """The buckets of B histories: sums [B, groups, 2^hash_width, D] and counts; arguments as in `forward`."""
        return self._encode(self._checked(Sequences(sequence, mask, offsets, places, signatures)))

    def query(self, candidates: Tensor, buckets: Buckets, signatures: Tensor | None = None) -> Tensor:
        """What candidates [B, D] or [B, C, D] read from the buckets of their row; of the same shape.

        One look-up of `groups` rows for each candidate (`embedding_bag`). A single user's buckets are a batch of one:
        candidates [1, C, D].
        """
        self._check_candidates(candidates)
        if candidates.dim() == 2:
            known = None if signatures is None else self._signed(candidates, signatures).unsqueeze(1)
            return self.query(candidates.unsqueeze(1), buckets, known).squeeze(1)
        for name, tensor in (("sums", buckets.sums), ("counts", buckets.counts)):
            check_tensor(tensor, f"SDIM: {name}")
            check_device(candidates, "candidates", tensor)
        if buckets.sums.shape[1:] != (self.groups, self.width, self.embedding_dim):
            raise ValueError(
                f"SDIM: buckets have shape {list(buckets.sums.shape)}, expected "
                f"[B, {self.groups}, {self.width}, {self.embedding_dim}]: encode them with the same configuration"
            )
        if buckets.counts.shape != buckets.sums.shape[:3]:
            raise ValueError(
                f"SDIM: counts have shape {list(buckets.counts.shape)}, expected {list(buckets.sums.shape[:3])}"
            )
        if buckets.sums.shape[0] != candidates.shape[0]:
            raise ValueError(f"SDIM: {len(candidates)} rows of candidates, {len(buckets.sums)} histories")
        sums, counts = buckets.sums, buckets.counts.float()
        learning = torch.is_grad_enabled() and (
            sums.requires_grad or (self.rule == "kernel" and self.weight.requires_grad)
        )
        if fast(sums) and fast(candidates) and not learning:
            return self._read(candidates, sums, counts, signatures)
        if self.rule == "kernel":
            # Every bucket becomes the weighted sum of all buckets of its group, so that one row says it all.
            mixed = self.weight.to(sums.dtype)[_distances(self.hash_width, sums.device)] @ sums
            sums = (mixed / (_events(counts) * self.groups).view(-1, 1, 1, 1)).to(sums.dtype)
        if fast(sums):
            asked = self._signed(candidates, signatures)
            readers = self._listed(asked, _starts(*asked.shape[:2]))
            found = gather(unit_rows(sums, 1 / self.groups) if self.rule == "l2" else sums, readers)
            if self.rule == "mean":
                found = _divided(found, gather(counts.unsqueeze(-1), readers))
            return found.view(candidates.shape)
        codes = self._codes(candidates, signatures)
        if self.rule == "l2":
            return read(unit(sums) / self.groups, codes)
        return read(sums, codes) if self.rule == "kernel" else _divided(read(sums, codes), _counted(counts, codes))

    def _read(self, candidates: Tensor, sums: Tensor, counts: Tensor, signatures: Tensor | None) -> Tensor:
        """`query` of candidates [B, C, D] in one call, without gradients."""
        matrix = self.projection.matrix if self.kind == "dense" else None
        known = self._signed(candidates, signatures) if signatures is not None or matrix is None else None
        counted = counts if self.rule == "mean" else None
        weights = None
        if self.rule == "kernel":
            weights = self.weight.detach().float() / (_events(counts) * self.groups).unsqueeze(1)
        return query(candidates, known, matrix, sums, counted, self.hash_width, self.rule == "l2", weights)

    def signatures(self, vectors: Tensor) -> Tensor:
        """The buckets of vectors in all groups, packed: float [..., D] -> int64 [..., words], a word for 63 bits."""
        self._check_width(vectors, "vectors")
        return self.projection.signatures(vectors, self.hash_width)  # pyright: ignore[reportCallIssue]

    def collision_probability(self, cosine: Tensor) -> Tensor:
        """How likely vectors of this cosine agree in a group: (1 - arccos(cosine) / pi)^hash_width, in [0, 1]."""
        edge = 1 - torch.finfo(cosine.dtype).eps  # beyond it the gradient of arccos is infinite
        return (1 - cosine.clamp(-edge, edge).arccos() / math.pi) ** self.hash_width

    def event_weight(self, cosine: Tensor) -> Tensor:
        """How much an event of this cosine with the candidate counts, with infinitely many hashes.

        The collision probability; with the rule "kernel", `sum_d weight[d] P(d bits of a group differ)`.
        """
        if self.rule != "kernel":
            return self.collision_probability(cosine)
        edge = 1 - torch.finfo(cosine.dtype).eps
        angle, tau = cosine.clamp(-edge, edge).arccos() / math.pi, self.hash_width
        chances = [math.comb(tau, d) * (1 - angle) ** (tau - d) * angle**d for d in range(tau + 1)]
        return sum((w * p for w, p in zip(self.weight, chances, strict=True)), torch.zeros_like(angle))

    def _signed(self, vectors: Tensor, signatures: Tensor | None) -> Tensor:
        """The signature of each vector: float [..., D] -> int64 [..., words]."""
        if signatures is None:
            return self.signatures(vectors)
        check_tensor(signatures, "SDIM: signatures")
        check_device(signatures, "signatures", vectors)
        words = words_for(self.groups, self.hash_width)
        if signatures.shape != (*vectors.shape[:-1], words) or signatures.dtype != torch.int64:
            raise ValueError(
                f"SDIM: signatures {signatures.dtype} {list(signatures.shape)} do not fit vectors "
                f"{list(vectors.shape)}: expected torch.int64 {[*vectors.shape[:-1], words]}"
            )
        return signatures

    def _codes(self, vectors: Tensor, signatures: Tensor | None) -> Tensor:
        """The bucket of each vector in each group: float [..., D] -> int64 [..., groups]."""
        if signatures is not None:
            return unpack(self._signed(vectors, signatures), self.groups, self.hash_width)
        with torch.no_grad():
            return sign_codes(self.projection(vectors), self.hash_width)

    def _encode(self, given: Sequences) -> Buckets:
        if fast(given.vectors):
            return Buckets(*scatter(*self._native(given)))
        (vectors, mask), codes = given.events(), self._event_codes(given)
        if given.offsets is None:
            return sum_padded(codes, vectors, mask, self.width)
        return sum_jagged(codes, vectors, segments(given.offsets, len(vectors)), given.batch, self.width)

    def _skips_buckets(self, candidates: int, given: Sequences) -> bool:
        """True where comparing every event with each candidate is cheaper than building all buckets."""
        if self.rule == "kernel":
            return False
        if fast(given.vectors):
            return candidates <= self.width // 2
        return candidates <= self.width and given.offsets is None

    def _collide(self, asked: Tensor, given: Sequences) -> Tensor:
        """Few candidates, by their signatures: what they read is added up event by event, without other buckets."""
        sums, counts = collide(*self._native(given), asked)
        if self.rule == "mean":
            return _divided(sums.sum(2), counts.sum(2).unsqueeze(-1))
        return unit_rows(sums, 1 / self.groups).sum(2)

    def _attend(self, asked: Tensor, given: Sequences) -> Tensor:
        """`_collide` in torch, by products with zeros and ones."""
        (vectors, mask), known = given.events(), self._event_codes(given)
        codes = unpack(asked, self.groups, self.hash_width)
        agree = codes.unsqueeze(-1) == known.transpose(1, 2).unsqueeze(1)  # [B, C, groups, L]
        agree = (agree & mask[:, None, None, :]).to(vectors.dtype)
        if self.rule == "mean":
            weights = agree.sum(2)
            return _divided(weights @ vectors, weights.sum(-1, keepdim=True))
        sums = agree.flatten(1, 2) @ vectors
        return unit(sums).view(*codes.shape, self.embedding_dim).mean(2)

    def _expected(self, candidates: Tensor, sequence: Tensor, mask: Tensor, offsets: Tensor | None) -> Tensor:
        asked, known = unit(candidates), unit(sequence)
        if offsets is None:
            weights = self.event_weight(asked @ known.transpose(1, 2)) * mask.unsqueeze(1)
            sums, total = weights @ sequence, weights.sum(-1, keepdim=True)
            events = mask.sum(1)
        else:
            row = segments(offsets, len(sequence))
            weights = self.event_weight(torch.einsum("tcd,td->tc", asked[row], known)).unsqueeze(-1)
            sums = torch.zeros_like(candidates).index_add(0, row, weights * sequence.unsqueeze(1))
            total = weights.new_zeros(*candidates.shape[:2], 1).index_add(0, row, weights)
            events = offsets.diff()
        if self.rule == "kernel":
            return sums / events.clamp(min=1)[:, None, None]
        return unit(sums) if self.rule == "l2" else _divided(sums, total)

    def _native(self, given: Sequences) -> tuple[Tensor, Events]:
        """Vectors [N, D] and the events that they are of, for compiled functions, which never read masked ones."""
        offsets = _starts(*given.shape) if given.offsets is None else given.offsets
        mask, places = (None if tensor is None else tensor.flatten() for tensor in (given.mask, given.places))
        known = self._signed(given.vectors, given.signatures)
        return given.vectors.reshape(-1, self.embedding_dim), self._listed(known, offsets, mask, places)

    def _listed(
        self, signatures: Tensor, offsets: Tensor, mask: Tensor | None = None, places: Tensor | None = None
    ) -> Events:
        return Events(signatures.flatten(0, -2), offsets, self.groups, self.hash_width, mask, places)

    def _event_codes(self, given: Sequences) -> Tensor:
        codes = self._codes(given.vectors, given.signatures)
        return codes if given.places is None else taken(codes, given.places)

    def _checked(self, given: Sequences) -> Sequences:
        self._check_width(given.vectors, "sequence")
        return given.check()

    def _check_candidates(self, candidates: Tensor) -> None:
        check_floats(candidates, "candidates")
        if candidates.dim() not in (2, 3):
            raise ValueError(f"SDIM: candidates have shape {list(candidates.shape)}: give [B, D] or [B, C, D]")
        self._check_width(candidates, "candidates")

    def _check_width(self, vectors: Tensor, what: str) -> None:
        check_floats(vectors, what)
        if not vectors.dim():
            raise ValueError(f"SDIM: {what} have no dimension, expected [..., {self.embedding_dim}]")
        if vectors.shape[-1] != self.embedding_dim:
            raise ValueError(
                f"SDIM: {what} have width {vectors.shape[-1]}, expected embedding_dim {self.embedding_dim}"
            )

    def settings(self) -> dict[str, Any]:
        """What decides the buckets, next to the projection itself: saved with the model."""
        return {
            "embedding_dim": self.embedding_dim,
            "num_hashes": self.num_hashes,
            "hash_width": self.hash_width,
            "projection": self.kind,
        }

    def get_extra_state(self) -> Tensor:
        text = json.dumps({"module": "SDIM", **self.settings()})  # by "module" checkpoints know it for ours
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing to set; `_load_from_state_dict` has compared it."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(f"{prefix}_extra_state")
        if saved is not None:  # before torch compares shapes, which do not tell one hash_width from another
            settings, mine = json.loads(bytes(saved.cpu().tolist())), self.settings()
            if differ := [
                f"{k}: saved {settings.get(k)!r}, here {v!r}" for k, v in mine.items() if settings.get(k) != v
            ]:
                raise ValueError(f"SDIM: the state was saved with another configuration ({'; '.join(differ)})")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"{self.embedding_dim}, num_hashes={self.num_hashes}, hash_width={self.hash_width}, rule={self.rule!r}"


def _divided(sums: Tensor, counts: Tensor) -> Tensor:
    """Sums / counts, and zero where nothing was counted."""
    return (sums / torch.where(counts > 0, counts, 1.0)).to(sums.dtype)


def _events(counts: Tensor) -> Tensor:
    """How many events each history has, 1 at least: [B]; every group counts all of them."""
    return counts[:, 0].sum(1).clamp(min=1)


def _starts(batch: int, length: int) -> Tensor:
    return length * torch.arange(batch + 1, device="cpu")


def _distances(hash_width: int, device: torch.device) -> Tensor:
    """How many bits of two buckets differ: int64 [2^hash_width, 2^hash_width]."""
    buckets = torch.arange(2**hash_width, device=device)
    differ = buckets.unsqueeze(1) ^ buckets
    return sum(((differ >> bit) & 1 for bit in range(hash_width)), torch.zeros_like(differ))


def _counted(counts: Tensor, codes: Tensor) -> Tensor:
    """How many events the buckets of each candidate hold together: [B, G, width], [B, C, G] -> [B, C, 1]."""
    return counts.gather(2, codes.transpose(1, 2)).sum(1).unsqueeze(-1)
