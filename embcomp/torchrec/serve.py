"""The served form of torchrec's collections: the same calls, in plain torch and the drop-ins of `embcomp.nn`.

A program traced from it contains no operators of torchrec or FBGEMM, so torch alone loads it.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.modules.embedding_configs import PoolingType
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from embcomp.nn.embedding import CompressedEmbedding
from embcomp.nn.embedding_bag import CompressedEmbeddingBag
from embcomp.serving.stores import Float32Store, ServedStore
from embcomp.serving.swap import served_form, serving_plan
from embcomp.torchrec.checks import check_features
from embcomp.torchrec.holders import KeyedHolder


@served_form.register
def _(holder: KeyedHolder, stores: Mapping[int, ServedStore]) -> dict[int, Any]:
    return {id(holder.module): ServedCollection(holder, stores)}


class ServedCollection(nn.Module):
    """The replacement of a collection of bags or sequences, compressed or not.

    Args:
        holder: the trained collection, which does not change.
        stores: the served store of each weight, by the weight's id; other weights are served as float32.
    """

    def __init__(self, holder: KeyedHolder, stores: Mapping[int, ServedStore]) -> None:
        super().__init__()
        rows_of = {name: table.rows for name, table in holder.tables.items()}
        rest = {id(rows): rows for own in rows_of.values() for rows in own if id(rows) not in stores}
        served = {**stores, **{key: Float32Store(rows, torch.float32) for key, rows in rest.items()}}
        self.bags, self.weighted, self.need_indices = holder.bags, holder.weighted, holder.need_indices
        means = {config.name for config in holder.configs if getattr(config, "pooling", None) == PoolingType.MEAN}
        outputs = holder.outputs
        self.outputs = [(o.key, o.feature, o.dim, o.plan.table.name in means) for o in outputs]
        copies: dict[int, Any] = {}  # an encoder that several features use stays one
        self.tables = nn.ModuleList()
        for output in outputs:
            part = dataclasses.replace(output.plan, encoder=copy.deepcopy(output.plan.encoder, copies))
            plan = serving_plan(part, served, rows_of[output.plan.table.name])
            settings: dict[str, Any] = {"mode": "sum", "include_last_offset": True}
            table = (
                CompressedEmbeddingBag.from_plan(*plan, **settings)
                if self.bags
                else CompressedEmbedding.from_plan(*plan)
            )
            self.tables.append(table)

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor | dict[str, JaggedTensor]:
        """Look up the features like the replaced collection."""
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
    """The ids of each feature, and their weights if needed, without operators of FBGEMM."""
    keys = list(features.keys())
    sizes: list[int] = features.lengths().view(len(keys), -1).sum(1).tolist()
    ids = dict(zip(keys, features.values().split(sizes), strict=True))
    return ids, dict(zip(keys, features.weights().split(sizes), strict=True)) if weighted else {}
