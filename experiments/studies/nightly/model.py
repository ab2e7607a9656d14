"""The model: a reader is the mean of the articles that the reader clicked, plus one vector for all readers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import embcomp
from embcomp.nn import CompressedEmbedding
from experiments.studies.nightly.clicks import Clicks
from experiments.studies.nightly.growth import START
from recsys_models.losses import sampled_softmax_loss

_BLOCK = 1024  # readers at a time


class Readers(nn.Module):
    """The model, without a tower: only dot products read its vectors.

    Args:
        articles: the table of articles.
    """

    def __init__(self, articles: CompressedEmbedding) -> None:
        super().__init__()
        self.articles = articles
        self.start = nn.Embedding(1, articles.embedding_dim)
        nn.init.normal_(self.start.weight, std=START)

    def forward(self, histories: Tensor, weights: Tensor) -> Tensor:
        """Return the vectors of readers, [B, dim], from articles, int64 [B, length], and weights, float [B, length]."""
        vectors = self.articles(histories.reshape(-1)).view(*histories.shape, -1)
        return (vectors * weights.unsqueeze(2)).sum(1) + self.start(torch.zeros_like(histories[:, 0]))


@dataclass(frozen=True)
class Vectors:
    """The vectors of a model: of the articles, [number, dim], and the one that is added for every reader, [1, dim]."""

    articles: Tensor
    start: Tensor

    @classmethod
    def of(cls, model: Readers) -> Vectors:
        """Return the vectors of a model, without gradients."""
        return cls(model.articles.materialize().detach(), model.start.weight.detach().clone())

    def readers(self, histories: Tensor) -> Tensor:
        """Compute the vectors of readers from histories, int64 [B, length] with -1 for none."""
        ids, weights = arguments(histories, len(self.articles))
        return F.embedding_bag(ids, self.articles, mode="sum", per_sample_weights=weights) + self.start


def arguments(histories: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return the ids and weights of histories; articles from `number` on are unknown, and left out."""
    known = (histories >= 0) & (histories < number)
    weights = known / known.sum(1, keepdim=True).clamp(min=1)
    return torch.where(known, histories, 0), weights.float()


def train(
    model: Readers, clicks: Clicks, rows: Tensor, settings: Mapping[str, Any], epochs: int, seed: int,
    old: Tensor | None = None,
) -> None:  # fmt: skip
    """Train on some clicks by a sampled softmax over articles.

    Args:
        model: the model.
        clicks: all clicks.
        rows: the clicks to train on, int64 [n].
        settings: "lr", "batch_size", "negatives", "anchor", "least_steps".
        epochs: the number of epochs; there are more if these have fewer than the least number of steps.
        seed: the seed of the order and of the negatives.
        old: the vectors of the night before, to which an anchor holds the articles; None for no anchor.
    """
    draw = torch.Generator().manual_seed(seed)
    counts = clicks.counts(rows, model.articles.num_embeddings or 0).clamp(min=1).double()  # all are drawn at times
    chances = counts / counts.sum()
    log_q = chances.log().float()
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["lr"])
    epochs = max(epochs, math.ceil(settings["least_steps"] * settings["batch_size"] / len(rows)))
    for _ in range(epochs):
        for batch in rows[torch.randperm(len(rows), generator=draw)].split(settings["batch_size"]):
            vectors, targets = model.articles.materialize(), clicks.articles[batch]
            queries = Vectors(vectors, model.start.weight).readers(clicks.histories[batch])
            drawn = torch.multinomial(chances, settings["negatives"], replacement=True, generator=draw)
            loss = sampled_softmax_loss(queries, vectors[targets], targets, vectors[drawn], drawn, log_q[drawn])
            if old is not None:
                loss = loss + embcomp.anchor_loss(vectors, old, torch.cat([targets, drawn]), weight=settings["anchor"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def hits(vectors: Vectors, targets: Tensor, histories: Tensor, k: int) -> Tensor:
    """Return whether each target is among the k articles of largest score outside the history: bool [n].

    Articles that share a row have equal scores; these are in a fixed random order.
    """
    order = torch.randperm(len(vectors.articles), generator=torch.Generator().manual_seed(0)).argsort()
    found = []
    for some in torch.arange(len(targets)).split(_BLOCK):
        scores, past = vectors.readers(histories[some]) @ vectors.articles.T, histories[some]
        past = torch.where(past < scores.shape[1], past, -1)
        hidden = torch.where(past >= 0, -torch.inf, scores.gather(1, past.clamp(min=0)))
        scores.scatter_(1, past.clamp(min=0), hidden)
        own = scores.gather(1, targets[some].unsqueeze(1))
        before = order < order[targets[some]].unsqueeze(1)
        found.append(((scores > own) | ((scores == own) & before)).sum(1) < k)
    return torch.cat(found)
