"""The inputs of semantic runs: content vectors by id, and codes and pieces from a configuration.

    [[methods]]
    method = "SemanticIds"
    table = "item"
    rows = 400
    [methods.options]
    codes = { tokenizer = "ResidualKMeans", levels = 4, codebook_size = 32 }
    pieces = { kind = "PrefixNgram", n = 4 }
    neighbours = { k = 80 }

The tokenizer is fitted on the items that occur in training, and encodes all items. Neighbours are optional.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

import data
from data.next_items import NextItems
from embcomp import SentencePieces
from embcomp.semantic_ids import Neighbours, Tokenizer
from embcomp.semantic_ids.pieces.base import PIECES, Pieces
from experiments.config import RunConfig
from experiments.errors import InputError
from experiments.tasks.text import vectors_file

if TYPE_CHECKING:
    from torchrec import KeyedJaggedTensor


class Content(Protocol):
    """The content of the ids of one table; codes are cached by it, so equal objects must have equal content."""

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Return the vectors of ids that have some, float32 [n, dim], and which these are, bool [num_embeddings]."""
        ...

    def counts(self) -> Tensor:
        """Return how often each id occurs in training: int64 [num_embeddings]."""
        ...


@dataclass(frozen=True)
class ClickContent:
    """The content of a feature of clicks."""

    folder: Path
    feature: str

    def vectors(self) -> tuple[Tensor, Tensor]:
        return content_of(data.ClickData(self.folder), self.feature)

    def counts(self) -> Tensor:
        return data.ClickData(self.folder).counts(self.feature)


@dataclass(frozen=True)
class ItemContent:
    """The content of the items of sequences: their own vectors, or those that `experiments.tasks.text` has made."""

    name: str
    events: NextItems

    def vectors(self) -> tuple[Tensor, Tensor]:
        if self.events.content is None:
            return by_id(self.name, map(str, self.events.values.tolist()))
        return torch.from_numpy(self.events.content), torch.ones(self.events.num_items, dtype=torch.bool)

    def counts(self) -> Tensor:
        return self.events.counts()


def resolved(run: RunConfig, clicks: data.ClickData) -> RunConfig:
    """Return the run with the codes and pieces that its method's options describe; see `resolve`.

    Raises:
        InputError: there is no table, or as for `resolve`.
    """
    if not needs_codes(run.method.options):
        return run
    if not isinstance(run.method.table, str):
        raise InputError("SemanticIds: name the feature with the content in method.table")
    return with_codes(run, ClickContent(clicks.folder, run.method.table))


def with_codes(run: RunConfig, content: Content) -> RunConfig:
    """Return the run with codes and pieces, of its method and of methods inside."""
    return dataclasses.replace(
        run, method=dataclasses.replace(run.method, options=resolve(run.method.options, content))
    )


def needs_codes(options: Mapping[str, Any]) -> bool:
    """Return whether a method's options, or those of a method inside, describe how codes are made."""
    inside = options.get("of")
    return isinstance(options.get("codes"), Mapping) or (isinstance(inside, Mapping) and needs_codes(inside))


def resolve(options: Mapping[str, Any], content: Content) -> dict[str, Any]:
    """Return options with the codes and pieces that the configuration describes.

    Raises:
        InputError: there are no content vectors, names are unknown, or settings do not fit.
    """
    complete = dict(options)
    if isinstance(complete.get("of"), Mapping):
        complete["of"] = resolve(complete["of"], content)
    if not isinstance(complete.get("codes"), Mapping):
        return complete
    try:
        tokenizer = json.dumps(complete["codes"], sort_keys=True)
        complete["codes"], complete["codebook_size"] = _codes(content, tokenizer)
        if "neighbours" in complete:
            complete["neighbours"] = _neighbours(content, json.dumps(complete["neighbours"], sort_keys=True))
        complete["pieces"] = _pieces(content, tokenizer, json.dumps(dict(complete["pieces"]), sort_keys=True))
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"SemanticIds: codes = {options['codes']}, pieces = {options.get('pieces')}: {error}"
        ) from error
    return complete


def codes_of(content: Content, settings: Mapping[str, Any]) -> tuple[Tensor, int]:
    """Return codes of all ids, int32 [num_embeddings, levels], -1 without content, and the size of the code books.

    Raises:
        InputError: the tokenizer is unknown, or there are no content vectors.
        TypeError, KeyError, ValueError: settings do not fit.
    """
    return _codes(content, json.dumps(settings, sort_keys=True))


@cache
def _codes(content: Content, text: str) -> tuple[Tensor, int]:
    settings = json.loads(text)
    name = settings.pop("tokenizer")
    if name not in Tokenizer.by_name:
        raise InputError(f"codes.tokenizer: unknown tokenizer {name!r}; there are {', '.join(Tokenizer.by_name)}")
    vectors, known = content.vectors()
    seen = content.counts()[known] > 0
    tokenizer = Tokenizer.by_name[name](settings.pop("levels"), settings.pop("codebook_size"), **settings)
    tokenizer.fit(vectors[seen])
    codes = torch.full((len(known), tokenizer.levels), -1, dtype=torch.int32)
    codes[known] = tokenizer.encode(vectors)
    return codes, tokenizer.codebook_size


@cache
def _neighbours(content: Content, text: str) -> Neighbours:
    vectors, known = content.vectors()
    return Neighbours.of(vectors, content.counts(), ids=known.nonzero().squeeze(1), **json.loads(text))


@cache
def _pieces(content: Content, tokenizer: str, text: str) -> Pieces:
    settings = json.loads(text)
    kind = settings.pop("kind")
    if kind not in PIECES:
        raise InputError(f"pieces.kind: unknown kind {kind!r}; there are {', '.join(PIECES)}")
    pieces = PIECES[kind](**settings)
    if not isinstance(pieces, SentencePieces):
        return pieces
    codes, size = _codes(content, tokenizer)
    return pieces.train(codes, content.counts(), codebook_size=size)


def content_of(clicks: data.ClickData, feature: str) -> tuple[Tensor, Tensor]:
    """Return the content vectors of ids that have some, float32 [n, dim], and which they are, bool [num_embeddings]."""
    size = int(clicks.schema.feature(feature).num_embeddings or 0)
    own = clicks.content(feature)
    if own is not None:
        return own, torch.ones(size, dtype=torch.bool)
    if not vectors_file(clicks.name).is_file():
        raise _no_vectors(clicks.name)
    values = clicks.vocabulary(feature)
    if values is None:
        raise InputError(f"{clicks.name}: feature {feature!r} has no vocabulary to find its vectors by")
    return by_id(clicks.name, values.to_list())


def by_id(name: str, ids: Iterable[str | None]) -> tuple[Tensor, Tensor]:
    """Return the vectors that `experiments.tasks.text` has made, for ids of the source; see `Content.vectors`."""
    path = vectors_file(name)
    if not path.is_file():
        raise _no_vectors(name)
    with np.load(path) as arrays:
        row_of: dict[str | None, int] = {str(id): i for i, id in enumerate(arrays["ids"].tolist())}
        vectors = torch.from_numpy(arrays["vectors"])
    rows = torch.tensor([row_of.get(id, -1) for id in ids])
    return vectors[rows[rows >= 0]], rows >= 0


def _no_vectors(name: str) -> InputError:
    return InputError(f"{name}: no content vectors; `python -m experiments text {name}` makes them")


def dense_content(clicks: data.ClickData, feature: str) -> Tensor:
    """Return content vectors by id, float32 [num_embeddings, dim], scaled to variance 1; zeros without content."""
    vectors, known = content_of(clicks, feature)
    scaled = vectors.new_zeros(len(known), vectors.shape[1])
    scaled[known] = vectors * vectors.square().mean().rsqrt()
    return scaled


class WithContent(nn.Module):
    """A model that gets the content vector of one feature as dense columns."""

    content: Tensor

    def __init__(self, model: nn.Module, feature: str, content: Tensor) -> None:
        super().__init__()
        self.model, self.feature = model, feature
        self.register_buffer("content", content, persistent=False)

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        vectors = self.content.index_select(0, sparse[self.feature].values())
        return self.model(torch.cat([dense, vectors], 1), sparse)
