"""The directions that vectors are coded along: random, of largest spread, or those in which signs lose least."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Rotation = Literal["itq", "random", "svd"] | None
ROTATIONS = (None, "itq", "random", "svd")
_SAMPLE = 1 << 16  # vectors that directions are learned from
_ROUNDS = 40  # of ITQ; the paper has 50, but the error converges before


def sample(vectors: Tensor, seed: int, most: int = _SAMPLE) -> Tensor:
    """Draw at most so many of the vectors."""
    if len(vectors) <= most:
        return vectors
    generator = torch.Generator().manual_seed(seed)
    return vectors[torch.randperm(len(vectors), generator=generator, device="cpu")[:most].to(vectors.device)]


def directions(vectors: Tensor, kind: Rotation, width: int, seed: int) -> Tensor | None:
    """Return orthonormal rows, float32 [width, dim], or None for the first columns as they are.

    Args:
        vectors: the vectors, float32 [n, dim].
        kind: "svd" for the directions of largest square sums; "itq" for those of "svd", turned so that the signs of the
            normalized vectors are closest to them (Gong et al. 2013, iterative quantization); "random" for drawn ones.
        width: the number of directions.
        seed: the seed of draws.
    """
    if kind is None:
        return None
    dim = vectors.shape[1]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64, device="cpu"))[0]
    if kind == "random":
        return drawn[:width].float().to(vectors.device)
    rows = sample(vectors, seed).double()
    axes = torch.linalg.eigh(rows.T @ rows).eigenvectors.flip(1)[:, :width]  # largest first
    if kind == "itq":
        values = F.normalize(rows @ axes)
        turn = torch.linalg.qr(drawn[:width, :width])[0].to(values.device)
        for _ in range(_ROUNDS):
            u, _, v = torch.linalg.svd(values.T @ (values @ turn).sign())
            turn = u @ v
        axes = axes @ turn
    return axes.T.float().contiguous()


def of_products(vectors: Tensor, queries: Tensor, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return directions that keep most of the products with queries, and how to read them: two float32 [width, dim].

    The coordinates of a vector are `vector @ second.T`, and coordinates y stand for `y @ first`.

    Args:
        vectors: the vectors, float32 [n, dim].
        queries: a sample of queries, float32 [m, dim].
        width: the number of directions.
        seed: the seed of the samples.
    """
    rows, asked = sample(vectors, seed).double(), sample(queries, seed).double()
    spread, axes = torch.linalg.eigh(asked.T @ asked / len(asked))
    root = spread.clamp(min=float(spread.max()) * 1e-8).sqrt()
    half = (axes * root) @ axes.T  # its square is the Gram matrix of the queries
    leading = torch.linalg.eigh(half @ (rows.T @ rows) @ half).eigenvectors.flip(1)[:, :width]
    back = (axes / root) @ axes.T
    return (leading.T @ back).float().contiguous(), (leading.T @ half).float().contiguous()
