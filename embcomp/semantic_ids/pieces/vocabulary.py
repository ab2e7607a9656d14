"""The vocabulary: the pieces that training items have, and the number of items with each."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Self

import torch
from torch import Tensor

from embcomp import configs
from embcomp.artifact import bytes_as_tensor
from embcomp.semantic_ids.pieces.base import PIECES, Pieces, numbers
from embcomp.settings import Within

MAX_CODES = 2**31  # at a level: more is no code book
CodeCount = Annotated[int, Within(1, MAX_CODES, text="in [1, 2^31]")]


@configs.kind
@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """The pieces with their support: the number of training items that have them.

    It is recorded once, when training begins, and kept with the tokenizer (`tokenizer.vocabulary = ...`): later items
    are judged by the support at that time.

    Attributes:
        pieces: the rule of the pieces.
        codebook_size: the number of codes at each level.
        keys: the sorted numbers of the supported pieces of each span, int64 [V] each; one tensor if the rule has one
            namespace.
        support: the number of items with each piece, int64 [V].

    Example:
        >>> import torch, embcomp
        >>> from embcomp.semantic_ids import Vocabulary
        >>> codes = torch.tensor([[0, 1], [0, 2], [3, 1]])
        >>> vocabulary = Vocabulary.of(codes[:2], embcomp.PrefixNgram(2), codebook_size=4)
        >>> vocabulary.support_of(codes)
        tensor([[2, 1],
                [2, 1],
                [0, 0]])
    """

    pieces: Pieces
    levels: int
    codebook_size: int
    keys: Sequence[Tensor] = dataclasses.field(repr=False)
    support: Sequence[Tensor] = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        for name in ("keys", "support"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @classmethod
    def of(cls, codes: Tensor, pieces: Pieces, *, codebook_size: int, counts: Tensor | None = None) -> Self:
        """Record the vocabulary of training items.

        Args:
            codes: the codes, integers [N, levels], -1 for items without content, which have no piece.
            pieces: the rule of the pieces.
            codebook_size: the number of codes at each level.
            counts: the number of times each item occurs in training, [N]; by default all items do.

        Raises:
            ValueError: codes are out of range, or counts have another length.
        """
        columns, number = piece_numbers(codes, pieces, codebook_size)
        carried = columns >= 0
        if counts is not None:
            if counts.shape != (codes.shape[0],):
                raise ValueError(f"counts must have shape [{codes.shape[0]}], got {list(counts.shape)}")
            carried = carried & (counts.cpu() > 0).unsqueeze(1)
        groups = (
            [(number.flatten(), carried.flatten())]
            if pieces.one_namespace
            else list(zip(number.unbind(1), carried.unbind(1), strict=True))
        )
        unique = [number[mask].unique(return_counts=True) for number, mask in groups]
        return cls(pieces, codes.shape[1], codebook_size, [k for k, _ in unique], [s for _, s in unique])

    def support_of(self, codes: Tensor) -> Tensor:
        """Return the support of each piece of each item, int64 [N, pieces]; 0 for a piece that no training item has."""
        columns, number = piece_numbers(codes, self.pieces, self.codebook_size)
        support = torch.zeros_like(number)
        for j in range(number.shape[1]):
            keys, counts = (
                self.keys[0 if self.pieces.one_namespace else j],
                self.support[0 if self.pieces.one_namespace else j],
            )
            if keys.numel():
                indices = torch.searchsorted(keys, number[:, j].contiguous()).clamp_(max=keys.numel() - 1)
                known = (keys[indices] == number[:, j]) & (columns[:, j] >= 0)
                support[:, j] = torch.where(known, counts[indices], 0)
        return support

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return JSON values and tensors, for `Tokenizer.save`."""
        fields = {f.name: getattr(self.pieces, f.name) for f in dataclasses.fields(self.pieces)}
        tensors = {"model": bytes_as_tensor(fields.pop("model"))} if fields.get("model") else {}
        fields.pop("model", None)
        for j, (keys, support) in enumerate(zip(self.keys, self.support, strict=True)):
            tensors |= {f"keys.{j}": keys, f"support.{j}": support}
        kind = {"kind": type(self.pieces).__name__, **fields}
        return {"pieces": kind, "levels": self.levels, "codebook_size": self.codebook_size}, tensors

    @classmethod
    def from_state(cls, values: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """Restore a vocabulary from the result of `state`."""
        fields = dict(values["pieces"])
        kind = PIECES[fields.pop("kind")]
        if "model" in tensors:
            fields["model"] = bytes(tensors["model"].tolist())
        spans = sum(name.startswith("keys.") for name in tensors)
        keys, support = ([tensors[f"{name}.{j}"] for j in range(spans)] for name in ("keys", "support"))
        return cls(kind(**fields), values["levels"], values["codebook_size"], keys, support)


def piece_numbers(codes: Tensor, pieces: Pieces, codebook_size: int) -> tuple[Tensor, Tensor]:
    """Return the pair (present, number), int64 [N, P] each; present < 0 where the item lacks the piece."""
    codes = checked_codes(codes, codebook_size)
    spans = pieces.spans(codes.shape[1])
    columns = pieces.columns(codes, codebook_size)
    number = numbers(columns.clamp(min=0), spans, pieces.size(codebook_size))
    return torch.stack([columns[:, list(span)].amin(1) for span in spans], 1), torch.stack(number, 1)


def checked_codes(codes: Any, codebook_size: int | None, name: str = "codes") -> Tensor:
    """Check codes, and return them as int64 [N, levels] on the CPU; an item without content has -1 at all levels.

    Raises:
        ValueError: the shape or dtype differs, or a code is out of range; the text names the item.
    """
    codes = torch.as_tensor(codes, device="cpu")
    if codes.dim() != 2 or codes.shape[1] == 0 or codes.is_floating_point() or codes.dtype == torch.bool:
        raise ValueError(f"{name} must be integers [items, levels], got {codes.dtype} {list(codes.shape)}")
    codes = codes.long()
    missing = (codes == -1).all(1)
    limit = MAX_CODES if codebook_size is None else codebook_size
    outside = (codes < 0) | (codes >= limit)
    wrong = outside.any(1) & ~missing
    if bool(wrong.any()):
        item = int(wrong.nonzero()[0])
        allowed = "in [0, 2^31)" if codebook_size is None else f"in [0, {codebook_size})"
        raise ValueError(
            f"{name} of item {item} are {codes[item].tolist()}, expected {allowed}, or -1 at all levels for an item "
            "without content"
        )
    return codes
