"""A sketch of the ids with the largest scores of a stream, in a fixed number of cells."""

from collections.abc import Mapping

import torch
from torch import Tensor

from embcomp.ops.hashing import hash_key, hash_rows

EMPTY = -1
"""The key of a cell that holds no id."""


class HotSketch:
    """Buckets of a few cells, each an id and its score: SpaceSaving (Metwally et al. 2005) in each bucket.

    An id that its bucket holds adds to its score. Another one takes an empty cell, or that of the lowest score, which
    it keeps and adds to: no score is below the true sum (CAFE's sketch, Zhang et al. 2024, arXiv 2312.03256, 3.2). What
    was inherited so is kept beside it, so that the sure part of a score, never above the true sum, is known too: ids of
    a long tail that come and go all inherit high scores.

    Args:
        buckets: the number of buckets.
        cells: the number of cells of a bucket.
        seed: another seed gives other buckets.

    Attributes:
        keys: the ids, int64 [buckets, cells]; `EMPTY` where there is none.
        scores: their scores, float32 [buckets, cells].
        inherited: the part of each score that the id may not have, float32 [buckets, cells].

    Example:
        >>> import torch
        >>> sketch = HotSketch(buckets=8, cells=4)
        >>> sketch.add(torch.tensor([5, 9, 5]), torch.tensor([1.0, 0.5, 2.0]))
        >>> sketch.scores_of(torch.tensor([5, 9, 7]))
        tensor([3.0000, 0.5000, 0.0000])
    """

    def __init__(self, buckets: int, cells: int = 4, seed: int = 0) -> None:
        self.keys = torch.full((buckets, cells), EMPTY, dtype=torch.int64, device="cpu")
        self.scores = torch.zeros(buckets, cells, dtype=torch.float32, device="cpu")
        self.inherited = torch.zeros_like(self.scores)
        self._key = torch.tensor([hash_key(seed, "hot sketch", 0)], device="cpu")

    def _buckets(self, ids: Tensor) -> Tensor:
        return hash_rows(ids, self._key, len(self.keys)).squeeze(1)

    @torch.no_grad()
    def add(self, ids: Tensor, scores: Tensor) -> None:
        """Add scores.

        Args:
            ids: int64 [N], not negative; equal ones add up.
            scores: float [N], not negative.
        """
        ids, id_of_score = torch.unique(ids.cpu(), return_inverse=True)
        sums = torch.zeros(len(ids), dtype=torch.float32, device="cpu").index_add_(0, id_of_score, scores.cpu().float())
        buckets = self._buckets(ids)
        order = buckets.argsort(stable=True)
        ids, sums, buckets = ids[order], sums[order], buckets[order]
        known = self.keys[buckets] == ids.unsqueeze(1)
        row, cell = known.nonzero(as_tuple=True)
        self.scores[buckets[row], cell] += sums[row]
        new = ~known.any(1)
        ids, sums, buckets = ids[new], sums[new], buckets[new]
        counts = torch.unique_consecutive(buckets, return_counts=True)[1]
        turn = torch.arange(len(ids)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        for number in range(int(counts.max()) if len(counts) else 0):  # one new id of each bucket at a time
            mine = turn == number
            at = buckets[mine]
            taken = torch.where(self.keys[at] == EMPTY, -1.0, self.scores[at])
            cell = taken.argmin(1)
            self.inherited[at, cell] = self.scores[at, cell]
            self.keys[at, cell] = ids[mine]
            self.scores[at, cell] += sums[mine]

    def scores_of(self, ids: Tensor) -> Tensor:
        """Return the sure scores of ids int64 [N], float32 [N]; 0 for those that no cell holds."""
        buckets = self._buckets(ids.cpu())
        sure = self.scores[buckets] - self.inherited[buckets]
        return torch.where(self.keys[buckets] == ids.cpu().unsqueeze(1), sure, 0.0).sum(1)

    def held(self) -> tuple[Tensor, Tensor]:
        """Return the ids that cells hold, int64 [n], and their sure scores, by score and then by id."""
        there = self.keys != EMPTY
        ids, scores = self.keys[there], (self.scores - self.inherited)[there]
        order = ids.argsort()
        order = order[scores[order].argsort(descending=True, stable=True)]
        return ids[order], scores[order]

    def decay(self, factor: float) -> None:
        """Multiply all scores."""
        self.scores *= factor
        self.inherited *= factor

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the cells."""
        return {"keys": self.keys.clone(), "scores": self.scores.clone(), "inherited": self.inherited.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Set the cells. Raise ValueError for a state of a sketch of another size."""
        if state["keys"].shape != self.keys.shape:
            raise ValueError(
                f"the state is of a sketch of {list(state['keys'].shape)} cells, here it has {list(self.keys.shape)}; "
                "take the same rows, own_share and room"
            )
        self.keys, self.scores, self.inherited = (state[name].clone() for name in ("keys", "scores", "inherited"))
