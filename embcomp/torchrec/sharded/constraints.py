"""The shardings that suit compressed tables: the choices of torchrec's planner, and the sharders for a device."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import BaseEmbeddingSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import ShardingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from embcomp.ops.optimizers import FusedOptimizerSettings, rule_of
from embcomp.torchrec.fused.fbgemm import fbgemm_lacks, fbgemm_settings
from embcomp.torchrec.sharded.means import ShardedBags
from embcomp.torchrec.sharded.native_tbe import native_params

TABLE_WISE, ROW_WISE = ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value
_COLUMNS = {ShardingType.COLUMN_WISE.value, ShardingType.TABLE_COLUMN_WISE.value, ShardingType.GRID_SHARD.value}


class BagSharder(EmbeddingBagCollectionSharder):
    """A sharder of EmbeddingBagCollection that also offers row-wise sharding on CPU, and leaves frozen tables whole."""

    def shard(self, *args: Any, **kwargs: Any) -> ShardedEmbeddingBagCollection:
        sharded = super().shard(*args, **kwargs)
        if sharded._has_mean_pooling_callback:
            sharded.__class__ = ShardedBags
        return sharded

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(dict.fromkeys([*super().sharding_types(compute_device_type), ROW_WISE]))

    def shardable_parameters(self, module: EmbeddingBagCollection) -> dict[str, nn.Parameter]:
        return _trained(super().shardable_parameters(module))


class SequenceSharder(EmbeddingCollectionSharder):
    """A sharder of EmbeddingCollection that leaves frozen tables whole."""

    def shardable_parameters(self, module: EmbeddingCollection) -> dict[str, nn.Parameter]:
        return _trained(super().shardable_parameters(module))


def _trained(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in parameters.items() if weight.requires_grad}


def is_native(settings: FusedOptimizerSettings, device: torch.device) -> bool:
    """Return whether embcomp's engine trains the tables: on CPU, if FBGEMM does not support the settings."""
    return device.type == "cpu" and fbgemm_lacks(settings, on_gpu=False) is not None


def make_sharders(settings: FusedOptimizerSettings, device: torch.device) -> list[BaseEmbeddingSharder]:
    """Make sharders that update tables in the backward pass. Raise ValueError for settings that FBGEMM ignores."""
    if is_native(settings, device):
        fused = native_params(settings)
    else:
        fused = fbgemm_settings(settings, on_gpu=device.type == "cuda")
    return [BagSharder(fused_params=fused), SequenceSharder(fused_params=fused)]


def table_constraints(
    rows: Mapping[str, int],
    given: Mapping[str, ParameterConstraints] | None,
    settings: FusedOptimizerSettings,
    world_size: int,
) -> dict[str, ParameterConstraints]:
    """Return the constraints of every table: the given ones, table-wise or row-wise where they leave it open.

    Data-parallel sharding is excluded, because no fused optimizer runs there, although the planner would choose it for
    small tables. Column-wise sharding is excluded, because it splits the state of row-wise optimizers. Tables with
    fewer rows than ranks are not split.

    Args:
        rows: the number of rows of each table by name.
        given: the given constraints by table name.
        settings: the fused optimizer.
        world_size: the number of ranks.

    Raises:
        ValueError: a constraint names no table, or a sharding cannot train its table.
    """
    given = dict(given or {})
    unknown = sorted(given.keys() - rows.keys())
    if unknown:
        raise ValueError(f"constraints name no table of the model: {unknown}; the tables are {sorted(rows)}")
    for name, constraint in given.items():
        _check(name, constraint.sharding_types or (), settings)
        why = _unsplit(rows[name], settings, world_size)
        if constraint.sharding_types == [ROW_WISE] and why:
            raise ValueError(f"table {name!r}: row_wise {why}; leave the constraint out, or take table_wise")
    return {
        name: constraint
        if (constraint := given.get(name, ParameterConstraints())).sharding_types
        else replace(
            constraint,
            sharding_types=[TABLE_WISE] if _unsplit(number, settings, world_size) else [TABLE_WISE, ROW_WISE],
        )
        for name, number in rows.items()
    }


def _unsplit(rows: int, settings: FusedOptimizerSettings, world_size: int) -> str | None:
    """Return why a table cannot be split by rows; None if it can."""
    if rows < world_size:
        return f"needs a row for each rank, and it has {rows} for {world_size}"
    block = -(-rows // world_size)
    _, *later = rule_of(settings).states(settings).values() or [None]
    if "row" in later and block > 1 and rows % block == 1:
        # torchrec takes a state of one number, unless it is the first, for one of the whole table.
        return f"leaves the last rank one of {rows} rows, whose state of {settings.name} torchrec could not save"
    return None


def _check(name: str, types: Iterable[str], settings: FusedOptimizerSettings) -> None:
    known = {kind.value for kind in ShardingType}
    for kind in types:
        if kind not in known:
            raise ValueError(f"table {name!r}: no sharding type {kind!r}; choose among {sorted(known)}")
        if kind == ShardingType.DATA_PARALLEL.value:
            raise ValueError(
                f"table {name!r}: data_parallel tables are not updated by the optimizer inside the backward pass and "
                "would never be trained; choose table_wise or row_wise"
            )
        if kind in _COLUMNS and "row" in rule_of(settings).states(settings).values():
            raise ValueError(
                f"table {name!r}: {kind} gives each column shard its own state per row, so that {settings.name} "
                "would train differently from one process, and its checkpoint would fit no other sharding; choose "
                "table_wise or row_wise, or torch.optim.Adagrad or SGD"
            )
