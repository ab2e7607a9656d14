"""One call from item vectors to codes."""

import dataclasses
import hashlib
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp import artifact
from embcomp.ops.kmeans import no_progress
from embcomp.retrieval.checks import check_device, check_matrix
from embcomp.retrieval.choose import way
from embcomp.retrieval.rotations import Rotation
from embcomp.retrieval.vector_codes import Metric, VectorCodes
from embcomp.retrieval.ways import Progress


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
    metric: Metric = "dot",
    queries: Tensor | None = None,
    version: str | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> VectorCodes:
    """Codes vectors, such as those of `CompressedEmbedding.materialize()`, by one of five ways.

    Args:
        vectors: floats [n, dim], the final vectors of items.
        bits: a grid of so many bits for each value, 1 to 8.
        levels: recurrent sign codes: signs of the vector, of what is left, and so on, 1 to 4 of them.
        parts: product codes of so many parts.
        codes: vectors of each part, 2 to 256; 256 without.
        row_bits: grids of 0 to 8 bits, so many together for each vector, the more the more a direction varies.
        signs: so many signs for each vector, and the vectors that they add up, fitted in turn (`SignSums`).
        width: how many values of each vector are kept; all without.
        rotation: the directions that are coded: None for the values as they are; "svd" for those of most spread, or
            with `queries` for those that keep most of the products with them; "itq" for those where signs lose least;
            "random". The default is "svd" for `row_bits`, else None.
        scale: what has a step of its own with `bits`: each "row" (the default), each "column", or the "table".
        metric: "dot", or "cosine" for vectors and queries that are normalized first.
        queries: floats [m, dim], a sample of what will be asked, for rotation="svd".
        version: a stamp of the model that the vectors come from; a checksum of the vectors without.
        seed: of draws and code books.
        progress: told (steps done, steps, text).

    Returns:
        The codes.

    Raises:
        TypeError: vectors that are no tensor; a setting that the way does not have.
        ValueError: NaN, rows of zeros under "cosine", fewer vectors than codes, a width beyond theirs, none or several
            of bits, levels, parts, row_bits and signs.

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
    if scale is not None:
        settings["scale"] = scale
    chosen = way(**settings)  # pyright: ignore[reportArgumentType]
    chosen.check(*vectors.shape)
    if queries is not None:
        if chosen.rotation != "svd":
            raise ValueError("queries say which directions matter to rotation='svd': choose that, or leave them out")
        check_device(queries, "queries", vectors.device)
        queries = check_matrix(queries, "queries", vectors.shape[1], metric == "cosine")
        queries = F.normalize(queries) if metric == "cosine" else queries
    stamp = stamp_of(vectors) if version is None else version
    form = chosen.fit(F.normalize(vectors) if metric == "cosine" else vectors, queries, seed, progress)
    said = {"way": type(chosen).__name__, **dataclasses.asdict(chosen), "seed": seed}
    return VectorCodes(form, metric=metric, version=stamp, settings=said)


def stamp_of(vectors: Tensor) -> str:
    """The checksum of vectors that stands for a version where none is given."""
    digest = hashlib.sha256(f"{list(vectors.shape)}".encode())
    digest.update(artifact.memory(vectors.cpu().contiguous()))
    return digest.hexdigest()[:16]
