"""H2Rec: the items' own rows and their semantic codes in one sequence model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys_models.code_levels import CodeLevels
from recsys_models.contrastive import multi_positive_loss
from recsys_models.retrieval import Embedding
from recsys_models.sequence import CausalModel, Examples, last_of
from recsys_models.transformer import Block, Positions


class CrossAttention(nn.Module):
    """Attention of one sequence to the events of another up to the same position, with a residual: `[B, L, D]` both."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"{heads} heads do not divide a width of {dim}: choose another number")
        self.heads = heads
        self.norm, self.norm_seen = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key_value, self.join = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        query = self.query(self.norm(x)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(self.norm_seen(seen)).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return x + self.dropout(self.join(attended.transpose(1, 2).flatten(2)))


class Branches(NamedTuple):
    """The two branches of a history after they have attended to each other.

    Attributes:
        own: the own vectors, `[B, L, D]`.
        levels: the vectors of the codes, `[B, L, levels, D]`.
        weights: the weights of the levels, `[B, L, levels]`.
    """

    own: Tensor
    levels: Tensor
    weights: Tensor

    def sum_of_levels(self, weights: Tensor) -> Tensor:
        """Return the weighted sum of the levels, `[B, L, D]`."""
        return (weights.unsqueeze(3) * self.levels).sum(2)


class H2Rec(CausalModel):
    """A model of own rows and semantic codes side by side (H2Rec, arXiv 2512.10388).

    Own rows memorise frequent items; codes share statistics among similar items. Each level of the codes attends to the
    events' own vectors, and a gate that reads each event's own vector weighs the levels. One transformer reads their
    weighted sum and, in a second pass, own vectors that have attended to the mean of the codes. A query is both states
    side by side, `[B, 2 D]`; an item's output is its own vector beside the mean of its codes.

    The penalty aligns own and code vectors of the batch's items; items that differ only in the last code are positives
    of each other. It also aligns the codes' state with the state of a view in which the half of the levels with low
    weights is masked. The paper's hard negatives and its filter of positives are left out.

    Args:
        items: the embedding of the items' own rows, a module such as `nn.Embedding` or
            `embcomp.nn.CompressedEmbedding`.
        codes: the codes of the items, integers `[num_items, levels]`, -1 at all levels for an item without content.
        codebook_size: the number of codes of a level, by default the largest code plus one.
        length: the most events of a history.
        blocks: the number of blocks.
        heads: the number of attention heads.
        hidden: the width of the hidden layers, by default that of the items.
        dropout: the probability of dropping a value of the input, or of a block's output.
        align: the weight of the alignment of items.
        view: the weight of the alignment of views.
        temperature: the temperature of both alignments.

    Raises:
        ValueError: the id space is open, a length is below 1, the heads do not divide the width, or the codes do not
            fit.

    Shapes: history int64 `[B, L]` and mask bool `[B, L]` -> queries `[B, 2 D]`; see `SequenceModel`.

    Example:
        >>> import torch
        >>> codes = torch.randint(8, (500, 3))
        >>> model = H2Rec(torch.nn.Embedding(500, 16), codes=codes, length=50)
        >>> history = torch.tensor([[3, 1, 4], [7, 7, 0]])
        >>> model(history, history > 0).shape
        torch.Size([2, 32])
    """

    groups: Tensor
    prior: Tensor

    def __init__(
        self,
        items: Embedding,
        *,
        codes: Tensor,
        codebook_size: int | None = None,
        length: int = 200,
        blocks: int = 2,
        heads: int = 1,
        hidden: int | None = None,
        dropout: float = 0.2,
        align: float = 0.1,
        view: float = 0.1,
        temperature: float = 0.5,
    ) -> None:
        super().__init__(items, length)
        if len(codes) != self.num_items:
            raise ValueError(f"there are codes of {len(codes)} items, but {self.num_items} items")
        dim = self.embedding_dim
        self.align, self.view, self.temperature = align, view, temperature
        self.codes = CodeLevels(codes, dim, codebook_size)
        self.register_buffer("groups", self.codes.groups(), persistent=False)
        levels = self.codes.levels
        # finer codes begin with less weight
        self.register_buffer("prior", torch.linspace(1, 0.2, levels), persistent=False)
        self.to_own = nn.ModuleList(CrossAttention(dim, heads, dropout) for _ in range(levels))
        self.to_codes = CrossAttention(dim, heads, dropout)
        self.gate = nn.Sequential(nn.Linear(dim + levels, dim), nn.GELU(), nn.Linear(dim, levels))
        self.positions = Positions(length, dim, dropout)
        self.blocks = nn.ModuleList(
            Block(dim, heads=heads, hidden=hidden or dim, dropout=dropout) for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(dim)

    def vectors(self, items: Tensor | None = None) -> Tensor:
        every = torch.arange(self.num_items, device=self.groups.device) if items is None else items
        return torch.cat([super().vectors(items), self.codes(every).mean(-2)], 1)

    def states(self, history: Tensor) -> Tensor:
        branches = self.branches(history)
        return torch.cat(self._backbone(branches.own, branches.sum_of_levels(branches.weights)), 2)

    def examples(self, history: Tensor, mask: Tensor) -> Examples:
        if not self.training:
            return super().examples(history, mask)
        seen, before, asked = self.check(history[:, :-1]), mask[:, :-1], mask[:, 1:]
        branches = self.branches(seen)
        weights = (branches.weights, masked_levels(branches.weights)) if self.view else (branches.weights,)
        own, codes, *view = self._backbone(branches.own, *map(branches.sum_of_levels, weights))
        penalty = self.align * self.alignment(seen[before])
        if view:
            penalty = penalty + self.view * self._alignment_of_views(codes, view[0], before)
        return Examples(torch.cat([own, codes], 2)[asked], history[:, 1:][asked], penalty)

    def alignment(self, items: Tensor) -> Tensor:
        """Return the loss, a scalar, that aligns own rows with codes: of each of the items, int64 `[N]`, once."""
        met = items.unique()
        if not len(met):
            return self.prior.new_zeros(())
        both = self.items(met), self.codes(met).mean(1)
        return multi_positive_loss(*both, self.groups[met], self.temperature)

    def _alignment_of_views(self, first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
        some = mask.any(1)
        if not bool(some.any()):
            return self.prior.new_zeros(())
        views = [last_of(states[some], mask[some]) for states in (first, second)]
        apart = torch.arange(len(views[0]), device=mask.device)
        return multi_positive_loss(views[0], views[1], apart, self.temperature)

    def branches(self, history: Tensor) -> Branches:
        """Let own vectors and codes attend to each other, and weigh the levels."""
        own, codes = self.items(history), self.codes(history)
        levels = [attend(codes[:, :, level], own) for level, attend in enumerate(self.to_own)]
        return Branches(self.to_codes(own, codes.mean(2)), torch.stack(levels, 2), self.weights(own))

    def weights(self, own: Tensor) -> Tensor:
        """Return the weight of each level at each event, from its own vector: `[B, L, D]` -> `[B, L, levels]`."""
        prior = self.prior.expand(*own.shape[:2], -1)
        return (self.gate(torch.cat([own, prior], 2)) + prior).softmax(2)

    def _backbone(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the states of several sequences of vectors, each `[B, L, D]`, read by the same transformer."""
        x = self.positions(torch.cat(inputs))
        for block in self.blocks:
            x = block(x, causal=True)
        return self.norm(x).chunk(len(inputs))


def masked_levels(weights: Tensor) -> Tensor:
    """Set the lower half of the weights `[*, levels]` to zero and scale the others to the same sum.

    Example:
        >>> import torch
        >>> masked_levels(torch.tensor([0.125, 0.5, 0.25, 0.125]))
        tensor([0.0000, 0.6667, 0.3333, 0.0000])
    """
    kept = weights.topk(-(-weights.shape[-1] // 2), dim=-1).indices
    mask = torch.zeros_like(weights).scatter(-1, kept, 1.0)
    return weights * mask * (weights.sum(-1, keepdim=True) / (weights * mask).sum(-1, keepdim=True))
