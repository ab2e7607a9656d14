"""The drop-ins of an example method with random rows, and helpers of their tests."""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from embcomp.codecs import Codec
from embcomp.methods import Table
from embcomp.nn import CompressedEmbedding, CompressedEmbeddingBag
from embcomp.testing.example import Example

N, D = 40, 8
M = TypeVar("M", bound=nn.Module)


def randomize(module: M, seed: int = 0) -> M:
    """Draw all parameters from N(0, 1), also weights that start at 1, where an error would not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
    return module


def is_coded(module: nn.Module) -> bool:
    """Return whether rows are rounded: finite differences are then not gradients, and dtypes may round differently."""
    return any(isinstance(submodule, Codec) for submodule in module.modules())


def embedding(example: Example, n: int | None = N, dim: int = D, **settings: Any) -> CompressedEmbedding:
    """Make the drop-in of `nn.Embedding`, with random rows."""
    return randomize(CompressedEmbedding(n, dim, example.make([Table("embedding", n, dim)]), **settings))


def bag(example: Example, n: int | None = N, dim: int = D, **settings: Any) -> CompressedEmbeddingBag:
    """Make the drop-in of `nn.EmbeddingBag`, with random rows."""
    return randomize(CompressedEmbeddingBag(n, dim, example.make([Table("embedding", n, dim)]), **settings))


def singles(module: nn.Module, n: int = N) -> Tensor:
    """Return the vector of each id, looked up one by one."""
    if isinstance(module, CompressedEmbeddingBag):
        return torch.stack([module.materialize(torch.tensor(i)) for i in range(n)])
    return torch.stack([module(torch.tensor(i)) for i in range(n)])


def gradients(module: nn.Module, loss: Tensor) -> list[Tensor]:
    """Return dense gradients of all parameters; zeros for those that the loss does not depend on."""
    parameters = list(module.parameters())
    given = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else (g.to_dense() if g.is_sparse else g)
        for p, g in zip(parameters, given, strict=True)
    ]


def assert_all_close(actual: Iterable[Tensor], expected: Iterable[Tensor], **close: Any) -> None:
    """Compare tensors pair by pair, as `torch.testing.assert_close` does."""
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, **close)
