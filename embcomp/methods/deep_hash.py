"""A small network that computes the vector of an id from many of its hashes."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from embcomp.methods.base import Chunk, Combiner, Ladder, Method, Plan, Rows, Sizes, Store, Table, TablePlan, check_size
from embcomp.methods.hashing import HashEncoder
from embcomp.methods.together import Parts
from embcomp.ops.hashing import hash_rows
from embcomp.settings import MAX_READS, Width, Within

RANGE = 1 << 20
"""The number of values of a hash, before it is scaled."""
_SAMPLE = 2048  # random codes by which a fresh network is scaled


class Network(Combiner):
    """A ReLU perceptron of the numbers that an encoder hands over, [..., hashes]; the one chunk is its last bias.

    Its layers are [hashes, width], [width, width] for each further hidden one, and [width, embedding_dim].
    """

    linear = False
    draws = True
    costly = True

    def __init__(self, hashes: int, width: int, layers: int, embedding_dim: int) -> None:
        super().__init__()
        sizes = [hashes, *[width] * layers, embedding_dim]
        self.layers = layers
        for layer, pair in enumerate(itertools.pairwise(sizes)):
            self.register_parameter(f"matrix_{layer}", nn.Parameter(torch.empty(pair)))
        for layer in range(layers):
            self.register_parameter(f"bias_{layer}", nn.Parameter(torch.empty(width)))
        self.reset_parameters()

    @property
    def matrices(self) -> list[Tensor]:
        """The layers in their order."""
        return [getattr(self, f"matrix_{layer}") for layer in range(self.layers + 1)]

    @property
    def biases(self) -> list[Tensor]:
        """The biases of the hidden layers in their order."""
        return [getattr(self, f"bias_{layer}") for layer in range(self.layers)]

    def reset_parameters(self) -> None:
        """Draw the layers so that vectors have the deviation of `like`, and the mean of the chunk in each column."""
        *hidden, last = self.matrices
        with torch.no_grad():
            codes = torch.rand(_SAMPLE, len(self.matrices[0]), device=last.device) * 2 - 1
            for matrix, bias in zip(hidden, self.biases, strict=True):
                nn.init.normal_(matrix, std=(2 / len(matrix)) ** 0.5)
                nn.init.uniform_(bias, -1, 1)  # else one unit is a multiple of a sum of hashes
                bias.mul_(0.1)
            nn.init.normal_(last, std=len(last) ** -0.5)
            if last.is_meta:
                return
            codes = self._hidden(codes.to(last.dtype)).float()
            mean, weight = codes.mean(0), last.float()
            # No column has a mean of its own: it is turned away from the mean of the last hidden layer.
            weight = weight - mean.unsqueeze(1) * (mean @ weight) / mean.square().sum().clamp(min=1e-12)
            last.copy_(weight * (self.like.std / (codes @ weight).std().clamp(min=1e-12)))

    def _hidden(self, codes: Tensor) -> Tensor:
        for matrix, bias in zip(self.matrices[:-1], self.biases, strict=True):
            codes = torch.relu(codes @ matrix.to(codes.dtype) + bias.to(codes.dtype))
        return codes

    def forward(self, chunks: Sequence[Tensor]) -> Tensor:
        last_bias, codes = chunks
        hidden = self._hidden(codes.to(last_bias.dtype))
        return last_bias + hidden @ self.matrices[-1].to(hidden.dtype)

    def dim(self, dims: Sequence[int]) -> int:
        return self.matrices[-1].shape[1]


HASHES_A_UNIT = 8
"""The hashes for each unit of a hidden layer, where a budget decides both."""


class NumbersEncoder(HashEncoder):
    """An encoder that hands over the hashes of an id, scaled to [-1, 1]; all ids read the one row of the last bias."""

    hands: ClassVar[bool] = True

    def encode(self, ids: Tensor) -> list[Rows]:
        return [Rows(torch.zeros_like(ids).unsqueeze(-1))]

    def handed(self, ids: Tensor) -> list[Tensor]:
        return [hash_rows(ids, self.keys, RANGE).float().mul_(2 / (RANGE - 1)).sub_(1)]  # in place: they are many

    def lookups_of(self, chunk: int) -> int:
        return 1

    @classmethod
    def encode_together(cls, asked: Parts) -> Rows:
        """Return the rows of several encoders (`embcomp.methods.together`)."""
        return Rows(torch.zeros_like(asked.ids))


@dataclass(frozen=True, kw_only=True, eq=False)
class DeepHash(Method):
    """A network instead of a table (deep hash embedding, DHE, Kang et al. 2021, arXiv 2010.10784, sections 4 and 5).

    x(id) is `hashes` hashes of the id, scaled to [-1, 1]; e(id) = MLP(x(id)), hidden layers of `width` units with ReLU
    (the paper has Mish and batch normalisation). Each table has its own network, which is replicated under sharding and
    trained by the optimizer of the dense layers. Its last bias is a table of one row.

    Args:
        width: the number of units of a hidden layer.
        hashes: the number of hashes of an id; with few of them ids are hard to tell apart. For a budget the default is
            eight for each unit, at most 1,024.
        layers: the number of hidden layers.
        seed: the seed of the hashes.

    Raises:
        ValueError: the width, the hashes or the layers are below 1.

    Example:
        >>> import torch, embcomp
        >>> emb = embcomp.nn.CompressedEmbedding(None, 16, embcomp.DeepHash(width=32, hashes=256, layers=1))
        >>> emb(torch.tensor([3, 2**60])).shape
        torch.Size([2, 16])
        >>> embcomp.nbytes(emb) == 4 * (257 * 32 + 33 * 16) + 8 * 256  # the layers, and keys
        True
    """

    sized_in_steps: ClassVar[bool] = True
    sized_by: ClassVar[str] = "width"

    width: Width
    hashes: Annotated[int, Within(1, MAX_READS)] = 1024
    layers: Annotated[int, Within(1, 64)] = 2
    seed: int = 0

    def sizes(self, tables: Sequence[Table], group: str = "shared") -> Sizes:
        stores = {table.name: Store(1, table.embedding_dim, init="mean") for table in tables}
        hidden = (self.hashes + 1) * self.width + (self.layers - 1) * (self.width + 1) * self.width
        learned = sum(hidden + self.width * table.embedding_dim for table in tables)
        return Sizes(stores, len(tables) * self.hashes * HashEncoder.key_nbytes, learned)

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        sizes, plans = self.sizes(tables), []
        check_size(sizes, tables)
        for table in tables:
            encoder = NumbersEncoder(table, self.config(), self.seed, [RANGE], [self.hashes])
            network = Network(self.hashes, self.width, self.layers, table.embedding_dim)
            plans.append(TablePlan(table, encoder, (Chunk(table.name),), network))
        return Plan(dict(sizes.stores), plans)

    @classmethod
    def ladder(cls, tables: Sequence[Table], nbytes: int, **fixed: Any) -> Ladder[Self]:
        """Return the usual ladder, with the width, the same for all tables, as the size.

        Unless `hashes` is given, there are eight for each unit, at most 1,024: with few bytes a thousand inputs, and
        the keys of their hashes, would leave a hidden layer of one unit.
        """

        def make(width: int) -> Self:
            return cls(width=width, **{"hashes": min(cls.hashes, HASHES_A_UNIT * width), **fixed})

        return Ladder(make, lambda width: make(width).sizes(tables), most=1 << 14)
