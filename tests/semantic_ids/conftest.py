import pytest
import torch
from torch import Tensor

from embcomp.semantic_ids import ResidualKMeans


@pytest.fixture(scope="session")
def content() -> Tensor:
    """Vectors [600, 12] around 20 centres."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(20, 12, generator=generator)
    return centres[torch.arange(600) % 20] + 0.3 * torch.randn(600, 12, generator=generator)


@pytest.fixture
def tokenizer(content: Tensor) -> ResidualKMeans:
    return ResidualKMeans(levels=3, codebook_size=16).fit(content)
