"""`compress`: one call from item vectors to codes."""

import dataclasses
import hashlib
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp import artifact
from embcomp.ops.kmeans import no_progress
from embcomp.retrieval.checks import check_device, check_matrix
from embcomp.retrieval.named import way
from embcomp.retrieval.rotations import Rotation
from embcomp.retrieval.vector_codes import Metric, VectorCodes
from embcomp.retrieval.ways import Progress, Size


@torch.no_grad()
def compress(
    vectors: Tensor,
    *,
    bits: int | None = None,
    levels: int | None = None,
    parts: int | None = None,
    codes: int | None = None,
    row_bits: int | None = None,
    signs: int | None = None,
    width: int | None = None,
    rotation: Rotation | Literal["default"] = "default",
    scale: Literal["row", "column", "table"] | None = None,
    size: Size | None = None,
    metric: Metric = "dot",
    queries: Tensor | None = None,
    version: str | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> VectorCodes:
    """Code vectors, such as those of `CompressedEmbedding.materialize()`, in one of five ways.

    Args:
        vectors: the final vectors of items, floats [n, dim].
        bits: the bits of a value on a grid, 1 to 8.
        levels: the number of levels of recurrent sign codes, 1 to 4: signs of the vector, then of the remainder, and so
            on.
        parts: the number of parts of product codes.
        codes: with `parts`, the number of code vectors of each part, 2 to 256; by default 256.
        row_bits: the bits of a whole vector on grids of 0 to 8 bits; directions of more variance get more bits.
        signs: the number of signs of each vector, which add up vectors that are fitted in turn (`SignSums`).
        width: the number of values of each vector to keep; by default all.
        rotation: the directions to code along: None for the values as they are; "svd" for the directions of largest
            spread, or with `queries` for those that keep most of the products with them; "itq" for those in which signs
            lose least; "random". The default is "svd" for `row_bits`, else None.
        scale: with `bits`, the unit that has its own step: each "row" (the default), each "column", or the "table".
        size: the size of each row: "closest" (the default) loses the least square error; "unbiased" keeps the product
            of a vector with itself, which keeps more of rankings from about three bits per value on (`Sized`).
        metric: "dot", or "cosine" to normalize vectors and queries first.
        queries: a sample of queries, floats [m, dim], for rotation="svd".
        version: a stamp of the model of the vectors; by default a checksum of the vectors.
        seed: the seed of draws and code books.
        progress: a function that is told (steps done, steps, text).

    Returns:
        The codes.

    Raises:
        TypeError: vectors are not a tensor, or the way does not have a setting.
        ValueError: values are NaN, a row is zero with "cosine", there are fewer vectors than codes, the width exceeds
            that of the vectors, or none or several of bits, levels, parts, row_bits and signs are given.

    Example:
        >>> import torch
        >>> from embcomp import retrieval
        >>> vectors = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
        >>> codes = retrieval.compress(vectors, bits=4, version="2026-11-29")
        >>> bool((codes.decode() - vectors).square().mean() < 0.01 * vectors.square().mean())
        True
    """
    vectors = check_matrix(vectors, "vectors", cosine=metric == "cosine")
    if not len(vectors):
        raise ValueError("there are no vectors to code")
    if metric not in ("dot", "cosine"):
        raise ValueError(f"metric must be 'dot' or 'cosine', got {metric!r}")
    given = {
        "bits": bits, "levels": levels, "parts": parts, "codes": codes, "row_bits": row_bits, "signs": signs,
        "width": width,
    }  # fmt: skip
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if rotation != "default":
        settings["rotation"] = rotation
    settings |= {name: value for name, value in (("scale", scale), ("size", size)) if value is not None}
    chosen = way(**settings)  # pyright: ignore[reportArgumentType]
    chosen.check(*vectors.shape)
    if queries is not None:
        if chosen.rotation != "svd":
            raise ValueError("queries are only used by rotation='svd': choose that, or leave them out")
        check_device(queries, "queries", vectors.device)
        queries = check_matrix(queries, "queries", vectors.shape[1], metric == "cosine")
        queries = F.normalize(queries) if metric == "cosine" else queries
    stamp = stamp_of(vectors) if version is None else version
    form = chosen.fit(F.normalize(vectors) if metric == "cosine" else vectors, queries, seed, progress)
    said = {"way": type(chosen).__name__, **dataclasses.asdict(chosen), "seed": seed}
    return VectorCodes(form, metric=metric, version=stamp, settings=said)


def stamp_of(vectors: Tensor) -> str:
    """Return a checksum of vectors, which is the version if none is given."""
    digest = hashlib.sha256(f"{list(vectors.shape)}".encode())
    digest.update(artifact.memory(vectors.cpu().contiguous()))
    return digest.hexdigest()[:16]
