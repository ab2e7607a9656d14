"""Measures of how well codes describe content, and of the drift of new content away from a tokenizer."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp.semantic_ids.content import Content, ContentLike, as_content

PAIRED = 2048  # items whose pairs are compared


class Coder(Protocol):
    """The interface of a fitted tokenizer that is needed here."""

    width: int
    levels: int
    codebook_size: int
    baseline: dict[str, Any]

    def encode(self, content: ContentLike, /) -> Tensor: ...
    def decode(self, codes: Tensor, /) -> Tensor: ...
    def check_codes(self, codes: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Quality:
    """The result of `Tokenizer.quality`.

    Attributes:
        items: the number of items, N.
        coverage: the share of each level's codes that some item has.
        perplexity: exp of the entropy of each level's codes; at most codebook_size, if all are used equally.
        dead: the number of codes of each level that no item has.
        unique: the number of different code tuples divided by the number of items.
        collisions: the number of items that share all their codes with another item.
        relative_error: the relative error, sum |x - decode(codes)|^2 / sum |x|^2.
        cosine_by_shared_prefix: the mean cosine of pairs of items (among 2,048) that share exactly the first 0, 1, ...,
            levels codes; NaN if there is no such pair. It rises if prefixes are meaningful.
    """

    items: int
    coverage: tuple[float, ...]
    perplexity: tuple[float, ...]
    dead: tuple[int, ...]
    unique: float
    collisions: int
    relative_error: float
    cosine_by_shared_prefix: tuple[float, ...]

    def __str__(self) -> str:
        def many(values: tuple[Any, ...], form: str) -> str:
            return "  ".join(format(value, form) for value in values)

        return "\n".join(
            (
                f"items                    {self.items}",
                f"coverage                 {many(self.coverage, '.3f')}",
                f"perplexity               {many(self.perplexity, '.1f')}",
                f"dead codes               {many(self.dead, 'd')}",
                f"unique code tuples       {self.unique:.4f}",
                f"items that collide       {self.collisions}",
                f"relative error           {self.relative_error:.4f}",
                f"cosine by shared prefix  {many(self.cosine_by_shared_prefix, '.3f')}",
            )
        )


@dataclass(frozen=True)
class Drift:
    """The result of `Tokenizer.drift`.

    Attributes:
        relative_error: the relative error of the new content.
        expected_error: the error expected of content like that of the fit: its error there, corrected for overfitting.
        error_ratio: the ratio relative_error / expected_error.
        divergence: the Jensen-Shannon divergence, in bits (0 .. 1), between the former and the current use of each
            level's codes, minus what a sample of this size shows by chance.
        retrain: True if error_ratio is above 1.25 or a divergence is above 0.2.
    """

    relative_error: float
    expected_error: float
    error_ratio: float
    divergence: tuple[float, ...]
    retrain: bool


def quality(
    tokenizer: Coder, codes: Tensor | None, content: ContentLike, *, column: str | None = None, seed: int = 0
) -> Quality:
    """Measure the quality of `codes` (None: those of `tokenizer.encode`) for `content`.

    Raises:
        ValueError: codes do not fit the content, or one of them does not fit the tokenizer.
    """
    content = as_content(content, column)
    content.check_width(tokenizer.width)
    codes = tokenizer.check_codes(tokenizer.encode(content) if codes is None else codes)
    if codes.shape[0] != len(content):
        raise ValueError(f"there are codes of {codes.shape[0]} items, but {content.name} holds {len(content)} vectors")
    counts = _counts(codes, tokenizer.codebook_size)
    share = counts / counts.sum(1, keepdim=True)
    tuples, sizes = codes.unique(dim=0, return_counts=True)
    return Quality(
        items=len(content),
        coverage=tuple((counts > 0).double().mean(1).tolist()),
        perplexity=tuple((-torch.xlogy(share, share).sum(1)).exp().tolist()),
        dead=tuple((counts == 0).sum(1).tolist()),
        unique=tuples.shape[0] / codes.shape[0],
        collisions=int(sizes[sizes > 1].sum()),
        relative_error=_relative_error(tokenizer, codes, content),
        cosine_by_shared_prefix=_cosines(codes, content, seed),
    )


def baseline(tokenizer: Coder, sample: Tensor) -> dict[str, Any]:
    """Return the values that `drift` compares with: items, error and counts of codes on the content of the fit."""
    content = Content(sample)
    codes = tokenizer.check_codes(tokenizer.encode(content))
    return {
        "items": len(content),
        "relative_error": _relative_error(tokenizer, codes, content),
        "counts": _counts(codes, tokenizer.codebook_size).long().tolist(),
    }


def drift(
    tokenizer: Coder,
    new_content: ContentLike,
    *,
    column: str | None = None,
    most_error: float = 1.25,
    most_divergence: float = 0.2,
) -> Drift:
    """Compare new content with that of the fit; `retrain` is True if either limit is exceeded.

    A codebook of K codes fits its own n vectors better than others, by (1 - K / n) against (1 + K / n) at each level if
    the vectors are noise. The expected error is corrected by this factor.
    """
    content = as_content(new_content, column)
    codes = tokenizer.check_codes(tokenizer.encode(content))
    error = _relative_error(tokenizer, codes, content)
    per_item = min(0.5, tokenizer.codebook_size / tokenizer.baseline["items"])
    expected = tokenizer.baseline["relative_error"] * ((1 + per_item) / (1 - per_item)) ** tokenizer.levels
    then = torch.tensor(tokenizer.baseline["counts"], dtype=torch.float64)
    now = _counts(codes, tokenizer.codebook_size)
    divergence = _divergence(then, now)
    ratio = error / expected if expected else float("inf") if error else 1.0
    retrain = ratio > most_error or max(divergence) > most_divergence
    return Drift(error, expected, ratio, divergence, retrain)


def _counts(codes: Tensor, size: int) -> Tensor:
    """Count how often each code occurs, float64 [levels, size]."""
    return torch.stack([torch.bincount(level, minlength=size) for level in codes.t()]).double()


def _divergence(then: Tensor, now: Tensor) -> tuple[float, ...]:
    """The Jensen-Shannon divergence in bits, less its mean under equal use: (K' - 1) (1/n + 1/m) / (8 ln 2)."""
    p, q = then / then.sum(1, keepdim=True), now / now.sum(1, keepdim=True)
    m = (p + q) / 2
    nats = (torch.xlogy(p, p / m.clamp(min=1e-300)) + torch.xlogy(q, q / m.clamp(min=1e-300))).sum(1) / 2
    used = (m > 0).sum(1)
    chance = (used - 1) * (1 / then.sum(1) + 1 / now.sum(1)) / 8
    return tuple(((nats - chance) / torch.log(torch.tensor(2.0))).clamp(min=0).tolist())


def _relative_error(tokenizer: Coder, codes: Tensor, content: Content) -> float:
    error = total = 0.0
    start = 0
    for block in content.blocks():
        decoded = tokenizer.decode(codes[start : start + block.shape[0]])
        error += float((block.cpu() - decoded).double().square().sum())
        total += float(block.double().square().sum())
        start += block.shape[0]
    return error / total


def _cosines(codes: Tensor, content: Content, seed: int) -> tuple[float, ...]:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(content), generator=generator)[:PAIRED].sort().values
    vectors = F.normalize(content.sample(PAIRED, seed).double().cpu(), dim=1)
    cosine = vectors @ vectors.t()
    same = codes[chosen].t().unsqueeze(2) == codes[chosen].t().unsqueeze(1)  # [levels, n, n]
    shared = same.long().cumprod(0).sum(0)
    pairs = torch.ones_like(shared, dtype=torch.bool).triu(1)
    return tuple(float(cosine[(shared == depth) & pairs].mean()) for depth in range(codes.shape[1] + 1))
