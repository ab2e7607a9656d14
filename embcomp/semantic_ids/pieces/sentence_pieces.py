"""SentencePieces: pieces of varying length, learned by the sentencepiece library."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from embcomp.checks import check_whole
from embcomp.extras import install
from embcomp.semantic_ids.pieces.base import Pieces, Span
from embcomp.semantic_ids.pieces.vocabulary import checked_codes

FIRST = 0x20000  # the character of code 0 of level 0; the others follow
LINE = 64  # items of a line, where lines are drawn by counts
DRAWN = 1_000_000  # items drawn, at most


@dataclass(frozen=True)
class SentencePieces(Pieces):
    """A rule with pieces from a unigram language model on codes (Singh et al. 2023, arXiv 2306.08121, section 3.2).

    Codes that often occur together become one piece: frequent items get few long pieces, rare items many short ones.
    Each (level, code) is one character, an item is a word, and an impression is a line of words: pieces do not cross
    items, and an item is weighted by its impressions. Train it once, then keep it with the tokenizer (`Vocabulary`).

    Args:
        vocab_size: the number of pieces, with all single codes in use.
        model: the sentencepiece model that `train` makes, or None.

    Example:
        >>> import torch, embcomp
        >>> codes = torch.tensor([[0, 1, 0], [0, 1, 1], [0, 1, 2], [1, 0, 3]])
        >>> counts = torch.tensor([50, 30, 30, 10])
        >>> pieces = embcomp.SentencePieces(vocab_size=11).train(codes, counts, codebook_size=4)
        >>> pieces.columns(codes, codebook_size=4).shape
        torch.Size([4, 3])
    """

    vocab_size: int
    model: bytes | None = field(default=None, repr=False)
    one_namespace: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_whole(type(self).__name__, "vocab_size", self.vocab_size)

    def train(
        self, codes: Tensor, impressions: Tensor | Iterable[Sequence[int]], *, codebook_size: int, seed: int = 0
    ) -> Self:
        """Return a copy with a trained model.

        Args:
            codes: the codes, integers [N, levels]; items with codes of -1 are left out.
            impressions: lists of item numbers that were shown together; or how often each item was shown, a tensor or
                array [N], from which lines are drawn.
            codebook_size: the number of codes at each level.
            seed: the seed of the drawn lines.

        Raises:
            ValueError: `vocab_size` is too small for the single codes or too large for the data, there are no
                impressions, an impression names an unknown item, or codes are out of range.
        """
        codes = checked_codes(codes, codebook_size)
        words = _words(codes, codebook_size)
        if isinstance(impressions, Tensor) or hasattr(impressions, "shape"):
            impressions = _drawn(torch.as_tensor(impressions), [bool(word) for word in words], seed)
        lines = (" ".join(_shown(words, line)) for line in impressions)
        held = io.BytesIO()
        try:
            _sentencepiece().SentencePieceTrainer.train(
                sentence_iterator=iter([line for line in lines if line]),
                model_writer=held,
                vocab_size=self.vocab_size,
                model_type="unigram",
                normalization_rule_name="identity",
                character_coverage=1.0,
                split_by_unicode_script=False,
                split_by_number=False,
                max_sentence_length=1 << 20,
                max_sentencepiece_length=codes.shape[1] + 1,
                bos_id=-1,
                eos_id=-1,
                num_threads=1,
                minloglevel=3,
            )
        except (RuntimeError, OSError) as error:
            said = str(error).strip().splitlines()[-1].rpartition("] ")[2]
            raise ValueError(f"SentencePieces(vocab_size={self.vocab_size}) does not fit these codes: {said}") from None
        return replace(self, model=held.getvalue())

    def spans(self, levels: int) -> tuple[Span, ...]:
        return tuple((column,) for column in range(levels))

    def size(self, codebook_size: int) -> int:
        return self.vocab_size

    def columns(self, codes: Tensor, codebook_size: int) -> Tensor:
        """Return the pieces of each item from left to right, int64 [N, levels], then -1."""
        encoded = self._processor.encode(_words(codes, codebook_size), out_type=int)
        blank = self._processor.piece_to_id("▁")  # before a word, where it did not grow together with the first code
        unknown = self._processor.unk_id()
        kept = [[piece for piece in pieces if piece not in (blank, unknown)] for pieces in encoded]
        padded = [pieces + [-1] * (codes.shape[1] - len(pieces)) for pieces in kept]
        return torch.tensor(padded, dtype=torch.int64, device="cpu").reshape(-1, codes.shape[1])

    @cached_property
    def _processor(self) -> Any:
        if self.model is None:
            raise ValueError(f"{self} is not trained: call train(codes, impressions)")
        return _sentencepiece().SentencePieceProcessor(model_proto=self.model)

    def __repr__(self) -> str:
        model = "" if self.model is None else f", model={hashlib.sha256(self.model).hexdigest()[:12]}"
        return f"SentencePieces(vocab_size={self.vocab_size}{model})"

    def __getstate__(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size, "model": self.model}  # the processor is made again


def _words(codes: Tensor, codebook_size: int) -> list[str]:
    """Return each item as a word, one character for each (level, code); empty for items without codes."""
    rows = codes.tolist()
    return [
        "" if min(row) < 0 else "".join(chr(FIRST + level * codebook_size + code) for level, code in enumerate(row))
        for row in rows
    ]


def _shown(words: list[str], line: Iterable[int]) -> Iterator[str]:
    """Yield the words of an impression; items without codes have none."""
    for item in line:
        if not 0 <= item < len(words):
            raise ValueError(f"SentencePieces: an impression names item {item}, but there are codes of {len(words)}")
        if words[item]:
            yield words[item]


def _drawn(counts: Tensor, has_codes: list[bool], seed: int) -> Iterator[list[int]]:
    """Draw lines of items, each item in proportion to its count."""
    if counts.shape != (len(has_codes),) or not bool((counts >= 0).all()):
        raise ValueError(
            f"SentencePieces: counts must be non-negative, of shape [{len(has_codes)}], got {list(counts.shape)}"
        )
    weights = counts.double().cpu() * torch.tensor(has_codes, device="cpu")
    total = float(weights.sum())
    if not total > 0:
        raise ValueError("SentencePieces: no item with codes has a count above 0")
    generator = torch.Generator().manual_seed(seed)
    size = min(DRAWN, int(max(total, 1)))
    points = torch.rand(size, generator=generator, dtype=torch.float64, device="cpu") * total
    items = torch.searchsorted(weights.cumsum(0), points, right=True).clamp_(max=counts.shape[0] - 1)
    return (line.tolist() for line in items.split(LINE))


def _sentencepiece() -> Any:
    try:
        import sentencepiece
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: {install('semantic')}") from None
    return sentencepiece
