"""What semantic runs need beside the usual: content vectors by id, codes and pieces from a configuration.

    [[methods]]
    method = "SemanticIds"
    table = "item"
    rows = 400
    [methods.options]
    codes = { tokenizer = "ResidualKMeans", levels = 4, codebook_size = 32 }
    pieces = { kind = "PrefixNgram", n = 4 }
    neighbours = { k = 80 }

The tokenizer is fitted on the items that occur in training, and encodes all. Neighbours are optional.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

import data
from embcomp import SentencePieces
from embcomp.semantic_ids import Neighbours, Tokenizer
from embcomp.semantic_ids.pieces.base import PIECES
from experiments.config import RunConfig
from experiments.errors import InputError
from experiments.tasks.text import vectors_file

if TYPE_CHECKING:
    from torchrec import KeyedJaggedTensor


def resolved(run: RunConfig, clicks: data.ClickData) -> RunConfig:
    """The run with codes and pieces in the place of what its method's options say of them; see `resolve`."""
    if not isinstance(run.method.options.get("codes"), Mapping):
        return run
    options = resolve(run.method.options, clicks, run.method.table)
    return dataclasses.replace(run, method=dataclasses.replace(run.method, options=options))


def resolve(
    options: Mapping[str, Any], clicks: data.ClickData, feature: str | tuple[str, ...] | None
) -> dict[str, Any]:
    """Options with codes and pieces in the place of what the configuration says of them.

    Raises:
        InputError: no table, no content vectors, unknown names, settings that do not fit.
    """
    if not isinstance(feature, str):
        raise InputError("SemanticIds: say in method.table which feature has the content")
    found = dict(options)
    try:
        text = json.dumps(found["codes"], sort_keys=True)
        found["codes"], found["codebook_size"] = _codes(clicks.folder, feature, text)
        if "neighbours" in found:
            found["neighbours"] = _neighbours(clicks, feature, **found["neighbours"])
        settings = dict(found["pieces"])
        kind = settings.pop("kind")
        if kind not in PIECES:
            raise InputError(f"pieces.kind: unknown kind {kind!r}; there are {', '.join(PIECES)}")
        found["pieces"] = PIECES[kind](**settings)
        if isinstance(found["pieces"], SentencePieces):
            counts = clicks.counts(feature)
            found["pieces"] = found["pieces"].train(found["codes"], counts, codebook_size=found["codebook_size"])
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"SemanticIds: codes = {options['codes']}, pieces = {options.get('pieces')}: {error}"
        ) from error
    return found


@cache
def _codes(folder: Path, feature: str, text: str) -> tuple[Tensor, int]:
    clicks, settings = data.ClickData(folder), json.loads(text)
    name = settings.pop("tokenizer")
    if name not in Tokenizer.by_name:
        raise InputError(f"codes.tokenizer: unknown tokenizer {name!r}; there are {', '.join(Tokenizer.by_name)}")
    vectors, known = content_of(clicks, feature)
    seen = clicks.counts(feature)[known] > 0
    tokenizer = Tokenizer.by_name[name](settings.pop("levels"), settings.pop("codebook_size"), **settings)
    tokenizer.fit(vectors[seen])
    codes = torch.full((len(known), tokenizer.levels), -1, dtype=torch.int32)
    codes[known] = tokenizer.encode(vectors)
    return codes, tokenizer.codebook_size


def _neighbours(clicks: data.ClickData, feature: str, **settings: Any) -> Neighbours:
    vectors, known = content_of(clicks, feature)
    return Neighbours.of(vectors, clicks.counts(feature), ids=known.nonzero().squeeze(1), **settings)


def content_of(clicks: data.ClickData, feature: str) -> tuple[Tensor, Tensor]:
    """Content vectors of the ids that have some, float32 [n, dim], and which these are, bool [num_embeddings]."""
    size = int(clicks.schema.feature(feature).num_embeddings or 0)
    own = clicks.content(feature)
    if own is not None:
        return own, torch.ones(size, dtype=torch.bool)
    path = vectors_file(clicks.name)
    if not path.is_file():
        raise InputError(f"{clicks.name}: no content vectors; `python -m experiments text {clicks.name}` makes them")
    with np.load(path) as arrays:
        place = {str(id): i for i, id in enumerate(arrays["ids"].tolist())}
        vectors = torch.from_numpy(arrays["vectors"])
    values = clicks.vocabulary(feature)
    if values is None:
        raise InputError(f"{clicks.name}: feature {feature!r} has no vocabulary to find its vectors by")
    rows = torch.tensor([place.get(value, -1) for value in values.to_list()])
    return vectors[rows[rows >= 0]], rows >= 0


def dense_content(clicks: data.ClickData, feature: str) -> Tensor:
    """Content vectors by id, float32 [num_embeddings, dim], scaled to entries of variance 1; zeros where none."""
    vectors, known = content_of(clicks, feature)
    found = vectors.new_zeros(len(known), vectors.shape[1])
    found[known] = vectors * vectors.square().mean().rsqrt()
    return found


class WithContent(nn.Module):
    """A model that sees the content vector of one feature as dense columns."""

    content: Tensor

    def __init__(self, model: nn.Module, feature: str, content: Tensor) -> None:
        super().__init__()
        self.model, self.feature = model, feature
        self.register_buffer("content", content, persistent=False)

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        vectors = self.content.index_select(0, sparse[self.feature].values())
        return self.model(torch.cat([dense, vectors], 1), sparse)
