"""SDIM and DIN with the operations of published packages, as references for the bench."""

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys_models.attention import DINAttention


class PublishedSDIM(torch.nn.Module):
    """The attention of SDIM as in FuxiCTR (model_zoo/LongCTR), written anew.

    Rotations are copied for each row and histories for each candidate, both signs of a projection are compared by
    argmax, codes are floats, and collisions are found by `nonzero` and summed by `embedding_bag`.

    Its `num_hashes` is the number of our groups, its `hash_bits` our hash_width; `reuse_hash` and `l2_norm` are on, as
    in SDIM.

    Shapes: candidates `[B, D]`, histories `[B, L, D]`, mask `[B, L]` -> `[B, D]`.
    """

    rotations: Tensor
    powers: Tensor

    def __init__(self, dim: int, num_hashes: int = 16, hash_bits: int = 3, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.num_hashes = num_hashes
        self.register_buffer("rotations", torch.randn(1, dim, num_hashes, hash_bits, generator=generator))
        self.register_buffer("powers", 2.0 ** torch.arange(hash_bits))

    def forward(self, candidates: Tensor, histories: Tensor, mask: Tensor) -> Tensor:
        rotations = self.rotations.repeat(len(candidates), 1, 1, 1)
        known = self._hash(histories, rotations)
        asked = self._hash(candidates.unsqueeze(1), rotations).repeat(1, known.shape[1], 1)
        collide = ((known == asked) * mask.unsqueeze(-1)).float().permute(2, 0, 1)  # [num_hashes, B, L]
        # As published: places inside all histories of a hash, end to end, and the first of them at every hash.
        _, places = torch.nonzero(collide.flatten(start_dim=1), as_tuple=True)
        ends = collide.sum(dim=-1).flatten().cumsum(dim=0)
        offsets = torch.cat((torch.zeros(1, device=ends.device), ends)).long()
        events = histories.reshape(-1, candidates.shape[1])
        sums = F.embedding_bag(places, events, offsets, mode="sum", include_last_offset=True)
        return F.normalize(sums, dim=-1).view(self.num_hashes, -1, candidates.shape[1]).mean(dim=0)

    def _hash(self, vectors: Tensor, rotations: Tensor) -> Tensor:
        rotated = torch.einsum("bld,bdht->blht", vectors, rotations).unsqueeze(-1)
        bits = torch.cat((-rotated, rotated), dim=-1).argmax(dim=-1).float()
        return (bits @ self.powers.unsqueeze(-1)).squeeze(-1)


class PublishedDIN(DINAttention):
    """The usual form of DIN's attention: (q, s, q - s, q * s) of every pair goes through the network."""

    def forward(self, candidates: Tensor, sequence: Tensor, mask: Tensor) -> Tensor:
        asked, events = torch.broadcast_tensors(candidates.unsqueeze(2), sequence.unsqueeze(1))
        weights = self.unit(torch.cat((asked, events, asked - events, asked * events), dim=-1))
        return (weights.masked_fill(~mask[:, None, :, None], 0.0) * events).sum(2)
