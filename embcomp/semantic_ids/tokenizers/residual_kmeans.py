"""Residual k-means: each level clusters the residuals of the levels before it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embcomp.checks import check_whole
from embcomp.ops.kmeans import Progress, assign, kmeans
from embcomp.ops.sinkhorn import balance
from embcomp.semantic_ids.content import Content
from embcomp.semantic_ids.tokenizers.base import Tokenizer
from embcomp.semantic_ids.tokenizers.refine import refine, without
from embcomp.semantic_ids.tokenizers.resume import Checkpoint

PER_CODE = 256  # vectors of the sample for each code, as faiss takes


class ResidualKMeans(Tokenizer):
    """A residual quantization by k-means, without a network (Juang and Gray 1982; Chen, Guan and Wang 2010).

    Level by level k-means clusters the residuals; then `rounds` over all levels fit each codebook again, given the
    others. It is fitted on a sample of 256 vectors for each code, drawn in one pass over the content.

    Args:
        levels: the number of codes of an item.
        codebook_size: the number of codes at each level.
        iterations: the maximum number of k-means iterations at each level.
        tolerance: the relative decrease of the error below which k-means stops.
        rounds: the number of rounds over all levels, after k-means.
        sample: the number of vectors to fit on, by default 256 for each code.
        balanced: True to fit the codebooks so that all codes are used about equally often: after k-means, centroids
            move to the means of balanced clusters (Zhan et al. 2022, arXiv 2110.05789), and the rounds over all levels
            are left out. More items have codes of their own, at a larger error.
        seed: the seed of the sample and the first centroids.

    Example:
        >>> import torch
        >>> from embcomp.semantic_ids import ResidualKMeans
        >>> content = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
        >>> tokenizer = ResidualKMeans(levels=2, codebook_size=16).fit(content)
        >>> codes = tokenizer.encode(content)
        >>> codes.shape, codes.dtype, tokenizer.decode(codes).shape
        (torch.Size([500, 2]), torch.int32, torch.Size([500, 8]))
    """

    def __init__(
        self,
        levels: int,
        codebook_size: int,
        *,
        iterations: int = 25,
        tolerance: float = 1e-4,
        rounds: int = 4,
        sample: int | None = None,
        balanced: bool = False,
        seed: int = 0,
    ) -> None:
        for name, value, least in (("iterations", iterations, 1), ("rounds", rounds, 0)):
            check_whole("ResidualKMeans", name, value, least)
        if not isinstance(balanced, bool):
            raise ValueError(f"ResidualKMeans: balanced must be True or False, got {balanced!r}")
        if not 0 <= tolerance < 1:
            raise ValueError(f"ResidualKMeans: tolerance must be in [0, 1), got {tolerance!r}")
        if sample is not None:
            check_whole("ResidualKMeans", "sample", sample, codebook_size)
        super().__init__(
            levels, codebook_size, seed,
            iterations=iterations, tolerance=tolerance, rounds=rounds, sample=sample or PER_CODE * codebook_size,
            **({"balanced": True} if balanced else {}),
        )  # fmt: skip

    def _fit(
        self, content: Content, device: torch.device, progress: Progress, checkpoint: Path | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        settings: dict[str, Any] = self.settings
        vectors = content.sample(settings["sample"], self.seed).to(device)
        saved = Checkpoint(checkpoint, {"config": self.config(), "sample": vectors})
        codebooks: list[Tensor] = saved.load().get("codebooks", [])
        rest = vectors
        for level in range(self.levels):
            if level == len(codebooks):
                codebooks.append(self._level(rest, level, progress))
                saved.save({"codebooks": codebooks})
            codebooks[level] = codebooks[level].to(device)
            rest = without(rest, codebooks[level], assign(rest, codebooks[level])[0])
        fitted = torch.stack(codebooks)
        if not settings.get("balanced"):
            fitted = refine(vectors, fitted, rounds=settings["rounds"], progress=progress)
        return {"codebooks": fitted}, vectors

    def _level(self, rest: Tensor, level: int, progress: Progress) -> Tensor:
        """Fit the codebook of a level to the residuals of the levels before it."""
        try:
            centroids = kmeans(
                rest,
                self.codebook_size,
                iterations=self.settings["iterations"],
                tolerance=self.settings["tolerance"],
                seed=self.seed * 1000 + level,
                progress=lambda done, total, text: progress(
                    level * total + done, self.levels * total, f"level {level + 1}/{self.levels}, {text}"
                ),
            )
        except ValueError as error:
            remedy = ", or fewer levels" if level else ""
            raise ValueError(f"content, level {level + 1} of {self.levels}: {error}{remedy}") from None
        return balance(rest, centroids, seed=self.seed) if self.settings.get("balanced") else centroids
