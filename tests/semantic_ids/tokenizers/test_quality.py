import math
from itertools import combinations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from embcomp.semantic_ids import Quality, ResidualKMeans
from embcomp.semantic_ids import quality as quality_module
from embcomp.semantic_ids.content import Content


def cosines_by_hand(codes: list[tuple], content: Tensor) -> list[float]:
    """Over all pairs that share exactly the first 0, 1, ... codes."""
    vectors = content.double().tolist()
    found: list[list[float]] = [[] for _ in range(len(codes[0]) + 1)]
    for i, j in combinations(range(len(codes)), 2):
        same = [a == b for a, b in zip(codes[i], codes[j], strict=True)]
        depth = same.index(False) if False in same else len(same)
        product = sum(a * b for a, b in zip(vectors[i], vectors[j], strict=True))
        found[depth].append(product / math.hypot(*vectors[i]) / math.hypot(*vectors[j]))
    return [sum(values) / len(values) if values else math.nan for values in found]


def quality_by_hand(tokenizer: ResidualKMeans, codes: list[tuple], content: Tensor) -> Quality:
    n, size, books = len(codes), tokenizer.codebook_size, tokenizer.codebooks.double().tolist()
    levels = list(zip(*codes, strict=True))
    shares = [[level.count(code) / n for code in set(level)] for level in levels]
    vectors = content.double().tolist()
    decoded = [[sum(books[t][c][d] for t, c in enumerate(row)) for d in range(content.shape[1])] for row in codes]
    missed = sum((a - b) ** 2 for x, y in zip(vectors, decoded, strict=True) for a, b in zip(x, y, strict=True))
    return Quality(
        items=n,
        coverage=tuple(len(set(level)) / size for level in levels),
        perplexity=tuple(math.exp(-sum(p * math.log(p) for p in level)) for level in shares),
        dead=tuple(size - len(set(level)) for level in levels),
        unique=len(set(codes)) / n,
        collisions=sum(codes.count(row) > 1 for row in codes),
        relative_error=missed / sum(a * a for x in vectors for a in x),
        cosine_by_shared_prefix=tuple(cosines_by_hand(codes, content)),
    )


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items=st.integers(1, 30), used=st.integers(1, 16), own=st.booleans(), seed=st.integers(0, 99))
def test_quality_by_brute_force(
    tokenizer: ResidualKMeans, content: Tensor, items: int, used: int, own: bool, seed: int
) -> None:
    """For codes of the tokenizer and for any others."""
    generator = torch.Generator().manual_seed(seed)
    some = content[torch.randperm(600, generator=generator)[:items]]
    codes = tokenizer.encode(some) if own else torch.randint(used, (items, 3), generator=generator)
    found = tokenizer.quality(codes, some)
    expected = quality_by_hand(tokenizer, [tuple(row) for row in codes.tolist()], some)
    for name, value in vars(expected).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), name
    assert len(str(found).splitlines()) == len(vars(found))


def test_codes_and_content_must_belong_together(tokenizer: ResidualKMeans, content: Tensor) -> None:
    codes = tokenizer.encode(content)
    with pytest.raises(ValueError, match="codes of 599 items, but content holds 600"):
        tokenizer.quality(codes[1:], content)
    with pytest.raises(ValueError, match="not fitted"):
        ResidualKMeans(3, 16).quality(codes, content)


def test_of_many_items_some_are_paired(
    tokenizer: ResidualKMeans, content: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality_module, "PAIRED", 60)
    found = tokenizer.quality(None, content, seed=4).cosine_by_shared_prefix
    drawn = Content(content).sample(60, 4)
    codes = [tuple(row) for row in tokenizer.encode(drawn).tolist()]
    assert found == pytest.approx(cosines_by_hand(codes, drawn), nan_ok=True)
    assert found != pytest.approx(tokenizer.quality(None, content, seed=5).cosine_by_shared_prefix, nan_ok=True)


def test_cosine_rises_with_the_shared_prefix(tokenizer: ResidualKMeans, content: Tensor) -> None:
    found = tokenizer.quality(None, content[:150]).cosine_by_shared_prefix
    assert len(found) == 4
    assert found[0] < found[1] < found[2]


def test_drift_tells_new_content_from_more_of_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 12, generator=generator)

    def drawn(size: int) -> Tensor:
        return centres[torch.randint(40, (size,), generator=generator)] + 0.4 * torch.randn(
            size, 12, generator=generator
        )

    tokenizer = ResidualKMeans(3, 16).fit(drawn(1000))
    more = drawn(1000)
    same = tokenizer.drift(more)
    assert not same.retrain
    judged = tokenizer.quality(None, more)
    assert same.relative_error == pytest.approx(judged.relative_error)
    assert same.expected_error == pytest.approx(
        tokenizer.baseline["relative_error"] * ((1 + 16 / 1000) / (1 - 16 / 1000)) ** 3
    )
    assert same.error_ratio == pytest.approx(same.relative_error / same.expected_error)
    assert 0.8 < same.error_ratio < 1.2
    other = tokenizer.drift(torch.randn(1000, 12, generator=generator))
    assert other.retrain
    assert other.error_ratio > 1.25
    shifted = tokenizer.drift(drawn(1000) * 0.1 + centres[0])
    assert shifted.retrain
    assert max(shifted.divergence) > 0.2


def test_divergence_is_that_of_scipy_less_chance(tokenizer: ResidualKMeans, content: Tensor) -> None:
    new = content[:50] + 2 * content[0]
    then, now = tokenizer.encode(content), tokenizer.encode(new)
    for level, found in enumerate(tokenizer.drift(new).divergence):
        p, q = (torch.bincount(codes[:, level], minlength=16).double() for codes in (then, now))
        chance = (int(((p + q) > 0).sum()) - 1) * (1 / 600 + 1 / 50) / (8 * math.log(2))
        assert found == pytest.approx(max(0.0, jensenshannon(p, q, base=2) ** 2 - chance))


def test_chance_alone_makes_no_divergence(tokenizer: ResidualKMeans, content: Tensor) -> None:
    parts = [tokenizer.drift(part).divergence for part in content[torch.randperm(600)].split(60)]
    assert torch.tensor(parts).mean() < 0.02
