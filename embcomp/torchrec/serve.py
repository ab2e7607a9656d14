"""torchrec's collections as they are served: the same calls, by plain torch and the drop-ins of `embcomp.nn`.

A program traced from it holds no operator of torchrec or FBGEMM, so torch alone loads it.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.modules.embedding_configs import PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from embcomp.codecs.base import Codec
from embcomp.methods.base import TablePlan
from embcomp.nn.embedding import CompressedEmbedding
from embcomp.nn.embedding_bag import CompressedEmbeddingBag
from embcomp.serving.stores import Float32Store, ServedStore
from embcomp.serving.swap import serving_plan
from embcomp.torchrec.checks import check_features
from embcomp.torchrec.collections import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection
from embcomp.torchrec.fused import FusedTables
from embcomp.torchrec.layout import Output, make_layout
from embcomp.torchrec.site import codecs_of, stores_of


@dataclasses.dataclass(frozen=True)
class _Collection:
    """What a collection of any kind holds."""

    configs: list[Any]
    outputs: list[Output]
    rows: Mapping[str, Tensor]
    bags: bool
    weighted: bool = False
    need_indices: bool = False
    codecs: Mapping[str, Codec] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, module: Any) -> "_Collection":
        if isinstance(module, CompressedEmbeddingBagCollection):
            configs, weighted = module.embedding_bag_configs(), module.is_weighted()
            return cls(
                configs, list(module.assemble.outputs), stores_of(module), True, weighted, False, codecs_of(module)
            )
        if isinstance(module, CompressedEmbeddingCollection):
            outputs, indices = list(module.assemble.outputs), module.need_indices()
            return cls(module.embedding_configs(), outputs, stores_of(module), False, False, indices, codecs_of(module))
        if isinstance(module, FusedTables):
            configs, bags, weighted, indices = module.configs, module.bags, module.weighted, module.need_indices
        else:
            bags = isinstance(module, EmbeddingBagCollection)
            configs = module.embedding_bag_configs() if bags else module.embedding_configs()
            weighted, indices = bags and module.is_weighted(), not bags and module.need_indices()
        held: Any = module.embedding_bags if bags else module.embeddings
        rows = {name: part.weight for name, part in held.items()}
        return cls(configs, make_layout(configs, {}, weighted).outputs, rows, bags, weighted, indices)

    def rows_of(self, plan: TablePlan) -> list[Tensor]:
        """The weights of a table's stores, each once, in the order of their first chunk."""
        return [self.rows[name] for name in dict.fromkeys(chunk.store for chunk in plan.chunks)]

    def codecs_of(self, plan: TablePlan) -> dict[int, Codec]:
        """The codecs of a table's stores, by id of their weights."""
        names = {chunk.store for chunk in plan.chunks} & set(self.codecs)
        return {id(self.rows[name]): self.codecs[name] for name in names}


def tables_of(
    module: nn.Module,
) -> Iterator[tuple[str, TablePlan, str, list[Tensor], nn.Module | None, dict[int, Codec]]]:
    """For each table its name, plan, method, rows, encoder (None where it was not compressed), and codecs by row id."""
    found = _Collection.of(module)
    plans = {output.plan.table.name: output.plan for output in found.outputs}
    for config in found.configs:
        plan = plans[config.name]
        method = plan.encoder.config["method"]
        encoder = None if method == "Full" else plan.encoder
        yield config.name, plan, method, found.rows_of(plan), encoder, found.codecs_of(plan)


class ServedCollection(nn.Module):
    """Takes the place of a collection of bags or sequences, compressed or not.

    Args:
        module: the trained collection; it does not change.
        stores: what serves each weight, by its id; the other weights are served as float32.
    """

    def __init__(self, module: nn.Module, stores: Mapping[int, ServedStore]) -> None:
        super().__init__()
        found = _Collection.of(module)
        rest = {id(rows): rows for rows in found.rows.values() if id(rows) not in stores}
        served = {**stores, **{key: Float32Store(rows, torch.float32) for key, rows in rest.items()}}
        self.bags, self.weighted, self.need_indices = found.bags, found.weighted, found.need_indices
        means = {config.name for config in found.configs if getattr(config, "pooling", None) == PoolingType.MEAN}
        self.outputs = [(o.key, o.feature, o.dim, o.plan.table.name in means) for o in found.outputs]
        copies: dict[int, Any] = {}  # an encoder that several features use stays one
        self.tables = nn.ModuleList()
        for output in found.outputs:
            part = dataclasses.replace(output.plan, encoder=copy.deepcopy(output.plan.encoder, copies))
            plan = serving_plan(part, served, found.rows_of(output.plan))
            settings: dict[str, Any] = {"mode": "sum", "include_last_offset": True}
            table = (
                CompressedEmbeddingBag.from_plan(*plan, **settings)
                if self.bags
                else CompressedEmbedding.from_plan(*plan)
            )
            self.tables.append(table)

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor | dict[str, JaggedTensor]:
        """As the collection replaced."""
        check_features(features, [feature for _, feature, *_ in self.outputs], self.weighted)
        keys = list(features.keys())
        lengths = dict(zip(keys, features.lengths().view(len(keys), -1), strict=True))
        ids, weights = _split(features, self.weighted)
        if not self.bags:
            return {
                key: JaggedTensor(
                    table(ids[name]), lengths=lengths[name], weights=ids[name] if self.need_indices else None
                )
                for (key, name, *_), table in zip(self.outputs, self.tables, strict=True)
            }
        pooled = []
        for (_, name, _, mean), table in zip(self.outputs, self.tables, strict=True):
            offsets = F.pad(lengths[name].cumsum(0), (1, 0))
            vectors = table(ids[name], offsets, weights.get(name))
            pooled.append(vectors / lengths[name].clamp(min=1).unsqueeze(-1) if mean else vectors)
        widths = [dim for _, _, dim, _ in self.outputs]
        return KeyedTensor([key for key, *_ in self.outputs], widths, torch.cat(pooled, 1))


def _split(features: KeyedJaggedTensor, weighted: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Ids, and weights where they are wanted, by feature; without operators of FBGEMM."""
    keys = list(features.keys())
    sizes: list[int] = features.lengths().view(len(keys), -1).sum(1).tolist()
    ids = dict(zip(keys, features.values().split(sizes), strict=True))
    return ids, dict(zip(keys, features.weights().split(sizes), strict=True)) if weighted else {}
