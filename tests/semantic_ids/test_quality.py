import math

import pytest
import torch
from torch import Tensor

from embcomp.semantic_ids import ResidualKMeans


def test_quality_against_counts_by_hand(tokenizer: ResidualKMeans, content: Tensor) -> None:
    codes = tokenizer.encode(content)
    codes[:200] = codes[0]
    found = tokenizer.quality(codes, content)
    tuples = [tuple(row) for row in codes.tolist()]
    assert found.items == 600
    assert found.unique == len(set(tuples)) / 600
    assert found.collisions == sum(tuples.count(row) > 1 for row in tuples)
    for level in range(3):
        values = [row[level] for row in tuples]
        shares = [values.count(code) / 600 for code in set(values)]
        assert found.perplexity[level] == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
        assert found.dead[level] == 16 - len(set(values))
    assert "relative error" in str(found)
    with pytest.raises(ValueError, match="codes of 599 items, but content holds 600"):
        tokenizer.quality(codes[1:], content)


def test_cosine_rises_with_the_shared_prefix(tokenizer: ResidualKMeans, content: Tensor) -> None:
    content = content[:150]
    found = tokenizer.quality(None, content).cosine_by_shared_prefix
    assert len(found) == 4
    assert found[0] < found[1] < found[2]
    codes, unit = tokenizer.encode(content), torch.nn.functional.normalize(content.double(), dim=1)
    pairs = [
        float(unit[i] @ unit[j])
        for i in range(150)
        for j in range(i)
        if codes[i, 0] == codes[j, 0] and codes[i, 1] != codes[j, 1]
    ]
    assert found[1] == pytest.approx(sum(pairs) / len(pairs))


def test_drift_tells_new_content_from_more_of_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 12, generator=generator)

    def drawn(size: int) -> Tensor:
        return centres[torch.randint(40, (size,), generator=generator)] + 0.4 * torch.randn(
            size, 12, generator=generator
        )

    tokenizer = ResidualKMeans(3, 16).fit(drawn(1000))
    same = tokenizer.drift(drawn(1000))
    assert not same.retrain
    assert 0.8 < same.error_ratio < 1.2
    other = tokenizer.drift(torch.randn(1000, 12, generator=generator))
    assert other.retrain
    assert other.error_ratio > 1.25
    shifted = tokenizer.drift(drawn(1000) * 0.1 + centres[0])
    assert shifted.retrain
    assert max(shifted.divergence) > 0.2
