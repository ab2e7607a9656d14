"""The training items nearest to new items by content, whose rows `SemanticIds(neighbours=...)` mixes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from embcomp import artifact, configs
from embcomp.checks import check_whole
from embcomp.files import StrPath
from embcomp.semantic_ids.content import Content, ContentLike, as_content

NEW = 4096  # new items at a time
VECTORS = 1 << 14  # vectors at a time that they are compared with


@configs.kind
@dataclass(frozen=True, eq=False)
class Neighbours:
    """New items, and for each the k training items of the nearest content, made by `Neighbours.of`.

    Attributes:
        ids: the ids of the items that do not occur in training, int64 [n], ascending.
        nearest: the ids of training items, nearest first, int32 [n, k]; -1 after the last if there are fewer than k.
        weights: the weight of each training item, float32 [n, k], not negative; 0 where there is none.

    Example:
        >>> import torch
        >>> from embcomp.semantic_ids import Neighbours
        >>> content = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.2, 0.8]])
        >>> Neighbours.of(content, counts=torch.tensor([5, 3, 4, 0]), k=2).nearest
        tensor([[1, 2]], dtype=torch.int32)
    """

    expected: ClassVar[str] = "semantic_ids.Neighbours.of(...)"

    ids: Tensor = field(repr=False)
    nearest: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        content: ContentLike,
        counts: Tensor,
        *,
        ids: Tensor | None = None,
        k: int = 80,
        temperature: float = 0.2,
        column: str | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Compare every new item with every training item, by the cosine of their vectors.

        The content may be larger than memory; the vectors of the new items must fit.

        Args:
            content: the vectors [n, width]: a tensor, a numpy array, or the path of an .npy or .parquet file.
            counts: the number of times each id occurs in training, [num_embeddings]; new items are those with 0.
            ids: the ids of the vectors, [n]; by default every id has one, in order. Ids without a vector are left out.
            k: the number of neighbours of an item.
            temperature: the temperature of the weights, which are proportional to exp(cosine / temperature): the lower,
                the more the nearest items count.
            column: the column of the parquet file.
            device: the device of the computation; rounding may swap neighbours that are equally near.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the content is invalid (see `Tokenizer.fit`), ids are out of range or given twice, or no
                training item has a vector.
        """
        check_whole("Neighbours", "k", k)
        if not temperature > 0:
            raise ValueError(f"Neighbours: temperature must be positive, got {temperature}")
        content = as_content(content, column)
        if k > max(1000, len(content)):
            raise ValueError(f"Neighbours: k must be at most the {len(content)} vectors (or 1000), got {k}")
        counts = torch.as_tensor(counts, device="cpu")
        if ids is None and counts.shape[:1] != (len(content),):
            raise ValueError(
                f"{content.name}: {len(content)} vectors, but counts of {list(counts.shape)} ids; give the ids of "
                "the vectors in `ids`"
            )
        ids = torch.arange(len(content), device="cpu") if ids is None else torch.as_tensor(ids, device="cpu").long()
        _check(content, counts, ids)
        new = counts[ids] == 0
        if bool(new.all()):
            raise ValueError(
                f"{content.name}: no item with a vector occurs in training, so new ones have no neighbours"
            )
        order = ids[new].argsort()
        queries = torch.cat([unit[mask] for unit, mask in _blocks(content, new)])[order].to(device)
        scores = queries.new_full((queries.shape[0], k), -torch.inf)
        nearest = torch.full(scores.shape, -1, dtype=torch.int32, device=device)
        start = 0
        for unit, mask in _blocks(content, ~new):
            others = ids[start : start + mask.numel()][mask].to(device, torch.int32)
            start += mask.numel()
            vectors = unit[mask].to(device)
            for low in range(0, queries.shape[0], NEW):
                rows = slice(low, low + NEW)
                here = torch.cat([scores[rows], queries[rows] @ vectors.T], 1)
                scores[rows], best = here.topk(k, dim=1)
                both = torch.cat([nearest[rows], others.expand(here.shape[0], -1)], 1)
                nearest[rows] = both.gather(1, best)
        weights = torch.softmax(scores / temperature, dim=1)
        return cls(ids[new][order], nearest.cpu(), weights.cpu())

    def save(self, path: StrPath) -> None:
        """Write the neighbours as one file, with a checksum. An existing file is replaced in one step or not at all."""
        tensors = {"ids": self.ids, "nearest": self.nearest, "weights": self.weights}
        artifact.save(path, "neighbours", {}, tensors)

    @classmethod
    def load(cls, path: StrPath) -> Self:
        """Read neighbours that `save` wrote. Raise ValueError if the file is of another kind, truncated or edited.

        Example:
            >>> import torch
            >>> from embcomp.semantic_ids import Neighbours
            >>> content = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.2, 0.8]])
            >>> Neighbours.of(content, counts=torch.tensor([5, 3, 4, 0]), k=2).save("near.safetensors")
            >>> Neighbours.load("near.safetensors").ids
            tensor([3])
        """
        _, tensors = artifact.load(path, "neighbours")
        return cls(**tensors)

    def __post_init__(self) -> None:
        shapes = [list(tensor.shape) for tensor in (self.ids, self.nearest, self.weights)]
        if len(shapes[1]) != 2 or shapes[0] != shapes[1][:1] or shapes[1] != shapes[2]:
            raise ValueError(
                f"Neighbours: expected ids [n], nearest [n, k], weights [n, k], got {', '.join(map(str, shapes))}"
            )
        if self.ids.is_floating_point() or self.nearest.is_floating_point():
            raise ValueError(
                f"Neighbours: ids and nearest must be integers, got {self.ids.dtype} and {self.nearest.dtype}"
            )
        if not self.weights.is_floating_point() or not bool((self.weights.isfinite() & (self.weights >= 0)).all()):
            raise ValueError(
                "Neighbours: weights must be finite floats, not negative; if `of` made them, raise the temperature"
            )
        if bool((self.ids[1:] <= self.ids[:-1]).any()):
            raise ValueError("Neighbours: ids must be ascending, each once")


def _blocks(content: Content, wanted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (unit vectors, mask of the wanted ones) of each block."""
    start = 0
    for block in content.blocks(VECTORS):
        unit = torch.nn.functional.normalize(block.cpu(), dim=1)
        yield unit, wanted[start : start + unit.shape[0]]
        start += unit.shape[0]


def _check(content: Content, counts: Tensor, ids: Tensor) -> None:
    if counts.dim() != 1 or not bool((counts >= 0).all()):
        raise ValueError(f"Neighbours: counts must be non-negative, [num_embeddings], got shape {list(counts.shape)}")
    if ids.shape != (len(content),):
        raise ValueError(f"{content.name}: ids must be [{len(content)}], one for each vector, got {list(ids.shape)}")
    outside = (ids < 0) | (ids >= counts.shape[0])
    if bool(outside.any()):
        raise ValueError(f"{content.name}: id {int(ids[outside][0])} is outside of counts, [{counts.shape[0]}]")
    if ids.unique().numel() < ids.numel():
        raise ValueError(f"{content.name}: ids must be different, {int(ids.numel() - ids.unique().numel())} repeat")
