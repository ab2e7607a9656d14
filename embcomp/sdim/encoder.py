"""The encoder from item ids to the vectors and buckets that a behavior store adds up, with a model version."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from embcomp import nested
from embcomp.ops.signatures import unpack
from embcomp.sdim.sdim import SDIM

_KIND = "behavior encoder"


class Events(NamedTuple):
    """The buckets `codes` int64 [n, groups] and the `vectors` float32 [n, D] of n events."""

    codes: np.ndarray
    vectors: np.ndarray


class BehaviorEncoder:
    """The item embedding and the hashes of a model, for a `BehaviorStore`.

    Args:
        sdim: the module of the model, on CPU.
        items: the item embedding: a module (compressed or not), a function, ids int64 [n] -> float [n, D], or a table
            [num_items, D].
        version: the name of the model version. A store that holds another version is refused, so change it with every
            training.
        num_items: the number of ids; by default `items.num_embeddings`. None for an open id space.

    Raises:
        ValueError: the version is empty, or the widths differ.

    Example:
        >>> import torch
        >>> from embcomp.sdim import SDIM, BehaviorEncoder
        >>> encoder = BehaviorEncoder(SDIM(8, seed=1), torch.nn.Embedding(100, 8), version="2026-08-01")
        >>> encoder.stamp
        '2026-08-01, SDIM dense 8 x 48 in groups of 3, hashes ...'
    """

    def __init__(
        self, sdim: SDIM, items: Callable[[Tensor], Tensor] | Tensor, version: str, num_items: int | None = None
    ) -> None:
        if not version:
            raise ValueError("version is empty: name the model whose vectors are stored")
        if isinstance(items, Tensor):
            table = items.detach()
            items, num_items = lambda ids: table[ids], len(table)
        self.sdim = sdim
        self.items = items
        self.version = version
        self.num_items = getattr(items, "num_embeddings", None) if num_items is None else num_items
        width = getattr(items, "embedding_dim", sdim.embedding_dim)
        if width != sdim.embedding_dim:
            raise ValueError(f"items have width {width}, SDIM was built for embedding_dim {sdim.embedding_dim}")
        digest = hashlib.sha256()
        for buffer in sdim.projection.buffers():
            digest.update(buffer.cpu().contiguous().numpy().tobytes())
        self.stamp = (
            f"{version}, SDIM {sdim.kind} {sdim.embedding_dim} x {sdim.num_hashes} in groups of {sdim.hash_width}, "
            f"hashes {digest.hexdigest()[:12]}"
        )

    def known(self, ids: np.ndarray) -> np.ndarray:
        """Return which ids this model has: bool, of the shape of `ids`."""
        return (ids >= 0) & (True if self.num_items is None else ids < self.num_items)

    def __call__(self, ids: np.ndarray) -> Events:
        """Encode events, int64 [n].

        Raises:
            IndexError: the model does not have one of the ids.
            ValueError: a vector is not finite, and so must not reach the store.
        """
        if not (inside := self.known(ids)).all():
            raise IndexError(f"item {ids[~inside][0]} is out of range: the model has {self.num_items} items")
        with torch.no_grad():
            vectors = self.items(torch.from_numpy(ids)).detach().float()
            codes = unpack(self.sdim.signatures(vectors), self.sdim.groups, self.sdim.hash_width)
        vectors = vectors.numpy()
        if not (finite := np.isfinite(vectors).all(axis=1)).all():
            raise ValueError(f"item {ids[~finite][0]} has a vector that is not finite: nothing was written")
        return Events(codes.numpy(), vectors)

    def save(self, path: str | os.PathLike[str], chunk: int = 65_536) -> None:
        """Write the hashes and the vectors of all items, 4 · num_items · D bytes for every method, for `load`.

        Raises:
            ValueError: the id space is open.
            OSError: the file cannot be written; the error names it.
        """
        if self.num_items is None:
            raise ValueError("an open id space cannot be saved: serve the module itself (create_app)")
        with torch.no_grad():
            parts = [self.items(ids).detach().float() for ids in torch.arange(self.num_items).split(chunk)]
        state = {
            "items": torch.cat(parts),
            "sdim": self.sdim.state_dict(),
            "settings": {**self.sdim.settings(), "rule": self.sdim.rule},
            "version": self.version,
        }
        nested.save(path, _KIND, state)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BehaviorEncoder:
        """Read the file that `save` wrote, which holds tensors and numbers and no code.

        Raises:
            ValueError: the file is damaged, or is not a saved encoder.
        """
        state = nested.load(path, _KIND)
        try:
            sdim = SDIM(**state["settings"])
            sdim.load_state_dict(state["sdim"])
            return cls(sdim, nn.Embedding.from_pretrained(state["items"]), state["version"])
        except Exception as error:
            raise ValueError(
                f"{path} is not a saved BehaviorEncoder ({error}): write it with BehaviorEncoder.save"
            ) from error
