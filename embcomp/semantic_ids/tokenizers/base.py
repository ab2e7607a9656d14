"""The base of tokenizers, which map content vectors to codes and are frozen once they are fitted."""

import abc
import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from embcomp.artifact import checksum
from embcomp.checks import check_whole
from embcomp.ops.kmeans import Progress, no_progress
from embcomp.semantic_ids.content import Content, ContentLike, as_content
from embcomp.semantic_ids.pieces.vocabulary import Vocabulary
from embcomp.semantic_ids.tokenizers import files
from embcomp.semantic_ids.tokenizers.nearest import ROWS, nearest
from embcomp.semantic_ids.tokenizers.quality import Drift, Quality, baseline, drift, quality

TOKENIZERS: dict[str, type["Tokenizer"]] = {}


class Tokenizer(abc.ABC):
    """A map from content vectors to codes [N, levels], each below `codebook_size`, by residual quantization.

    A tokenizer is fitted once and never changes afterwards: the codes of an item stay the same, and new items can be
    encoded later. Codes do not depend on the device or the batch size (see `embcomp.semantic_ids.tokenizers.nearest`).

    Attributes:
        levels: the number of codes of an item.
        codebook_size: the number of codes at each level.
        width: the width of the content vectors.
        tensors: the fitted tensors by name; "codebooks" is float32 [levels, codebook_size, d].
        baseline: the error and use of the codes on the content of the fit, with which `drift` compares.
        vocabulary: the pieces and their support in training, if attached (`Vocabulary`).
    """

    by_name: ClassVar[dict[str, type["Tokenizer"]]] = TOKENIZERS

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        TOKENIZERS[cls.__name__] = cls

    def __init__(self, levels: int, codebook_size: int, seed: int, **settings: Any) -> None:
        for name, value, least in (("levels", levels, 1), ("codebook_size", codebook_size, 2), ("seed", seed, 0)):
            check_whole(type(self).__name__, name, value, least)
        self.levels, self.codebook_size, self.seed, self.settings = levels, codebook_size, seed, settings
        self.width = 0
        self.tensors: dict[str, Tensor] = {}
        self.baseline: dict[str, Any] = {}
        self.vocabulary: Vocabulary | None = None
        self._version = ""

    def config(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {
            "tokenizer": type(self).__name__, "levels": self.levels, "codebook_size": self.codebook_size,
            "seed": self.seed, **self.settings,
        }  # fmt: skip

    @property
    def fitted(self) -> bool:
        return bool(self.tensors)

    @property
    def codebooks(self) -> Tensor:
        """The codebooks, float32 [levels, codebook_size, d]."""
        self._check_fitted()
        return self.tensors["codebooks"]

    @property
    def version(self) -> str:
        """The checksum of configuration and tensors, made by `fit` and kept: equal versions give equal codes."""
        self._check_fitted()
        return self._version

    def fit(
        self,
        content: ContentLike,
        *,
        column: str | None = None,
        device: torch.device | str = "cpu",
        progress: Progress = no_progress,
        checkpoint: str | Path | None = None,
    ) -> Self:
        """Learn the codes, once.

        Args:
            content: the vectors [N, width]: a tensor, a numpy array, or the path of an .npy or .parquet file.
            column: the column of the parquet file.
            device: the device of the computation; the fitted tensors are moved to the CPU.
            progress: a function that is called with (steps done, maximum of steps, text).
            checkpoint: a file from which an interrupted fit continues, with the same result.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: vectors are NaN, infinite, zero or constant, the dtype or shape differs, there are fewer items
                than codes, a file is damaged, or the tokenizer is already fitted; the text names the reason.
        """
        if self.fitted:
            raise ValueError(f"this {type(self).__name__} is fitted and frozen ({self.version}): make a new one")
        content = as_content(content, column)
        if len(content) < self.codebook_size:
            raise ValueError(
                f"{content.name}: {len(content)} items are fewer than codebook_size {self.codebook_size}; choose a "
                "smaller one"
            )
        self.width = content.width
        tensors, sample = self._fit(
            content, torch.device(device), progress, None if checkpoint is None else Path(checkpoint)
        )
        self.tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self._version = self._checksum()
        self.baseline = baseline(self, sample.cpu())
        return self

    @abc.abstractmethod
    def _fit(
        self, content: Content, device: torch.device, progress: Progress, checkpoint: Path | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the fitted tensors by name, and the vectors [n, width] that they were fitted on."""

    def _latents(self, vectors: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Return the latent vectors to quantise, float32 [n, d], of vectors [n, width]; bit-identical everywhere."""
        return vectors

    def _from_latents(self, latents: Tensor) -> Tensor:
        """Return the vectors [n, width] of latents."""
        return latents

    @torch.no_grad()
    def encode(self, content: ContentLike, *, column: str | None = None, device: torch.device | str = "cpu") -> Tensor:
        """Compute the codes of the items, block by block.

        Args:
            content: the vectors, as for `fit`.
            column: the column of the parquet file.
            device: the device of the computation; the codes do not depend on it.

        Returns:
            The codes, int32 [N, levels] on the CPU.

        Raises:
            ValueError: the content does not fit, or the tokenizer is not fitted.
        """
        self._check_fitted()
        content = as_content(content, column)
        content.check_width(self.width)
        tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        codes = torch.empty(len(content), self.levels, dtype=torch.int32)
        start = 0
        for block in content.blocks():
            # What the levels leave stays in the cache of a CPU; a device gets whole blocks.
            for chunk in block.split(ROWS if torch.device(device).type == "cpu" else block.shape[0]):
                rest = self._latents(chunk.to(device), tensors)
                stop = start + chunk.shape[0]
                for level, codebook in enumerate(tensors["codebooks"]):
                    index = nearest(rest, codebook)
                    codes[start:stop, level] = index.cpu()
                    if level + 1 < self.levels:
                        rest = rest - codebook.index_select(0, index)
                start = stop
        return codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return the vectors that the codes stand for, float32 [N, width].

        Raises:
            ValueError: codes have another shape or are out of range; the text names the item and the code.
        """
        self._check_fitted()
        codes = self.check_codes(codes)
        return self._from_latents(torch.stack([self.codebooks[i][codes[:, i]] for i in range(self.levels)]).sum(0))

    def check_codes(self, codes: Tensor) -> Tensor:
        """Check the shape and range of codes, and return them as int64."""
        codes = torch.as_tensor(codes)
        if codes.dim() != 2 or codes.shape[1] != self.levels or codes.is_floating_point():
            raise ValueError(f"codes must be integers [N, {self.levels}], got {codes.dtype} {list(codes.shape)}")
        codes = codes.long().cpu()
        outside = ((codes < 0) | (codes >= self.codebook_size)).any(1)
        if bool(outside.any()):
            item = int(outside.nonzero()[0])
            raise ValueError(f"codes of item {item} are {codes[item].tolist()}, expected [0, {self.codebook_size})")
        return codes

    def quality(
        self, codes: Tensor | None, content: ContentLike, *, column: str | None = None, seed: int = 0
    ) -> Quality:
        """Measure how well the codes describe the content, see `embcomp.semantic_ids.Quality`."""
        self._check_fitted()
        return quality(self, codes, content, column=column, seed=seed)

    def drift(self, new_content: ContentLike, *, column: str | None = None) -> Drift:
        """Measure whether new items still resemble those of the fit, see `embcomp.semantic_ids.Drift`."""
        return drift(self, new_content, column=column)

    def save(self, folder: str | Path) -> None:
        """Write the fitted tokenizer and its vocabulary into a folder, in one step or not at all.

        Raises:
            ValueError: it is not fitted, or the folder holds a tokenizer of another version.
        """
        values: dict[str, Any] = {
            "version": self.version,
            "config": self.config(),
            "width": self.width,
            "baseline": self.baseline,
            "vocabulary": None,
        }
        tensors = dict(self.tensors)
        if self.vocabulary is not None:
            values["vocabulary"], held = self.vocabulary.state()
            tensors |= {f"vocabulary.{name}": tensor for name, tensor in held.items()}
        files.write(Path(folder), values, tensors)

    def _checksum(self) -> str:
        """The 12 hexadecimal digits that stand for everything that codes depend on."""
        parts = [self.config(), self.width, {name: checksum(tensor) for name, tensor in sorted(self.tensors.items())}]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    def _check_fitted(self) -> None:
        if not self.fitted:
            raise ValueError(f"this {type(self).__name__} is not fitted: call fit(content) or load one")

    def __repr__(self) -> str:
        state = f"fitted, version {self.version}" if self.fitted else "not fitted"
        settings = ", ".join(f"{k}={v!r}" for k, v in self.config().items() if k != "tokenizer")
        return f"{type(self).__name__}({settings}) [{state}]"


def load(folder: str | Path) -> Tokenizer:
    """Read a tokenizer that `Tokenizer.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file was damaged or edited, or has a later version of the format; the text names it.

    Example:
        >>> import torch
        >>> from embcomp import semantic_ids
        >>> content = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
        >>> semantic_ids.ResidualKMeans(levels=2, codebook_size=16).fit(content).save("films")
        >>> semantic_ids.load("films").encode(content).shape
        torch.Size([300, 2])
    """
    values, tensors = files.read(Path(folder))
    config = dict(values["config"])
    name = config.pop("tokenizer")
    if name not in TOKENIZERS:
        raise ValueError(f"{folder} holds a {name!r}, which this version does not know; it knows {sorted(TOKENIZERS)}")
    tokenizer = TOKENIZERS[name](config.pop("levels"), config.pop("codebook_size"), **config)
    kept = {key.partition(".")[2]: tensors.pop(key) for key in list(tensors) if key.startswith("vocabulary.")}
    tokenizer.tensors, tokenizer.width, tokenizer.baseline = tensors, values["width"], values["baseline"]
    tokenizer._version = values["version"]  # as it was fitted: a later release may know more settings
    if values["vocabulary"] is not None:
        tokenizer.vocabulary = Vocabulary.from_state(values["vocabulary"], kept)
    return tokenizer
