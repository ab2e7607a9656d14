"""SASRec: self-attentive sequential recommendation."""

from __future__ import annotations

from torch import Tensor, nn

from recsys_models.retrieval import Embedding
from recsys_models.sequence import CausalModel
from recsys_models.transformer import Block, Positions


class SASRec(CausalModel):
    """A transformer that sees only the past (Kang and McAuley 2018, arXiv 1808.09781, section III).

    Layers are normalised before rather than after, and the hidden layer of a block's network has its own width. With
    cross-entropy over all items instead of one negative it is the strong form of Klenitskiy and Vasilev 2023 (arXiv
    2309.07602).

    Args:
        items: the embedding of the items, a module such as `nn.Embedding` or `embcomp.nn.CompressedEmbedding`.
        length: the maximum number of events of a history.
        blocks: the number of blocks.
        heads: the number of attention heads.
        hidden: the width of the hidden layers, by default that of the items.
        dropout: the probability of dropping a value of the input, or of a block's output.

    Raises:
        ValueError: the id space is open, the length is below 1, or the heads do not divide the width.

    Shapes: history int64 `[B, L]` and mask bool `[B, L]` -> queries `[B, D]`; see `SequenceModel`.

    Example:
        >>> import torch, embcomp
        >>> items = embcomp.nn.CompressedEmbedding(500, 16, embcomp.DoubleHash(rows=60))
        >>> model = SASRec(items, length=50)
        >>> history = torch.tensor([[3, 1, 4], [7, 7, 0]])
        >>> mask = torch.tensor([[True, True, True], [True, True, False]])
        >>> model.scorer()(history, mask).shape  # of all items
        torch.Size([2, 500])
    """

    def __init__(
        self,
        items: Embedding,
        *,
        length: int = 200,
        blocks: int = 2,
        heads: int = 1,
        hidden: int | None = None,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(items, length)
        dim = self.embedding_dim
        self.positions = Positions(length, dim, dropout)
        self.blocks = nn.ModuleList(
            Block(dim, heads=heads, hidden=hidden or dim, dropout=dropout) for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(dim)

    def states(self, history: Tensor) -> Tensor:
        x = self.positions(self.items(history))
        for block in self.blocks:
            x = block(x, causal=True)
        return self.norm(x)
