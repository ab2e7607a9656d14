"""Drop-ins of an example method with random rows, and what tests ask of them."""

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
    """All parameters N(0, 1), weights that start at 1 included: an error in them would not show there."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
    return module


def is_coded(module: nn.Module) -> bool:
    """Whether rows are rounded: differences are then no gradients, and another dtype may round to the next level."""
    return any(isinstance(part, Codec) for part in module.modules())


def embedding(example: Example, n: int | None = N, dim: int = D, **settings: Any) -> CompressedEmbedding:
    """The drop-in of `nn.Embedding`, with random rows."""
    return randomize(CompressedEmbedding(n, dim, example.make([Table("embedding", n, dim)]), **settings))


def bag(example: Example, n: int | None = N, dim: int = D, **settings: Any) -> CompressedEmbeddingBag:
    """The drop-in of `nn.EmbeddingBag`, with random rows."""
    return randomize(CompressedEmbeddingBag(n, dim, example.make([Table("embedding", n, dim)]), **settings))


def singles(module: nn.Module, n: int = N) -> Tensor:
    """The vector of each id, asked for one by one."""
    if isinstance(module, CompressedEmbeddingBag):
        return torch.stack([module.materialize(torch.tensor(i)) for i in range(n)])
    return torch.stack([module(torch.tensor(i)) for i in range(n)])


def gradients(module: nn.Module, loss: Tensor) -> list[Tensor]:
    """Dense gradients of all parameters; zeros for those that the loss does not reach."""
    parameters = list(module.parameters())
    given = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else (g.to_dense() if g.is_sparse else g)
        for p, g in zip(parameters, given, strict=True)
    ]


def assert_all_close(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    """Compare tensors pair by pair, as `torch.testing.assert_close` does."""
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
