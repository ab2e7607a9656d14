"""The tables of `HotRows` in torchrec's collections, plain, fused and sharded, for `HotTracker`."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.types import ShardedModule
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embcomp.holders import holder_of
from embcomp.optimizers import row_states
from embcomp.schedule.hot_tracker import ForwardHook, Told, Watched, copy_all, owners_encoder, watched
from embcomp.torchrec.collection.modules import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection
from embcomp.torchrec.holders import CompressedCollectionHolder

Collection = CompressedEmbeddingBagCollection | CompressedEmbeddingCollection


class _WatchedCollection(Watched):
    """A watched table of a collection."""

    def __init__(self, module: Collection, table: str | None) -> None:
        holder = holder_of(module, [""])
        assert isinstance(holder, CompressedCollectionHolder)
        outputs = [output for output in holder.outputs if output.plan.table.name == table]
        if not outputs or table is None:
            names = list(dict.fromkeys(output.plan.table.name for output in holder.outputs))
            raise ValueError(f"table={table!r}: name one of the collection's tables, {names}")
        self.table, self.outputs = table, outputs
        self.module: Any = module
        branch = self.module.branches[outputs[0].reads[0].branch]
        self.encoder = owners_encoder(outputs[0].plan.encoder, coded=bool(branch.codecs))

    @property
    def _inner(self) -> Any:
        """The collection that holds the rows, in its present form."""
        return self.module.branches[self.outputs[0].reads[0].branch].collection

    def attach(self, told: Told) -> Any:
        def after(args: tuple[Any, ...], given: dict[str, Any], result: Any) -> None:
            if not torch.is_grad_enabled():
                return
            features: KeyedJaggedTensor = args[0] if args else given["features"]
            if isinstance(self.module, CompressedEmbeddingBagCollection):
                values = result.values()
                if values.requires_grad:
                    values.register_hook(lambda grad: self._tell_bags(told, features, result, grad))
                return
            for output in self.outputs:
                jagged, ids = result[output.key], features[output.feature].values()
                if jagged.values().requires_grad:
                    jagged.values().register_hook(lambda grad, ids=ids: told(ids, grad.norm(dim=1)))

        return self.module.register_forward_hook(ForwardHook(after), with_kwargs=True)

    def _tell_bags(self, told: Told, features: KeyedJaggedTensor, result: Any, grad: Tensor) -> None:
        columns = dict(zip(result.keys(), grad.split(result.length_per_key(), dim=1), strict=True))
        for output in self.outputs:
            jagged = features[output.feature]
            lengths = jagged.lengths()
            norms = columns[output.key].norm(dim=1)
            if output.divide:
                norms = norms / lengths.clamp(min=1)
            norms = norms.repeat_interleave(lengths)
            weights = jagged.weights_or_none()
            told(jagged.values(), norms if weights is None else norms * weights.abs())

    def gather(self, told: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        inner = self._inner
        if not isinstance(inner, ShardedModule):
            return told
        group = _group(inner)
        everyone: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(everyone, told, group=group)
        return [each for one in everyone for each in one]

    def copy_rows(self, source: Tensor, target: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
        inner = self._inner
        if isinstance(inner, ShardedModule):
            _copy_sharded(self._sharded(), source, target, _group(inner))
            return
        holder = holder_of(self.module, [""])
        assert holder is not None
        (store,) = holder.tables[self.table].stores.values()
        copy_all([store.weight, *store.states, *row_states(optimizer, store.weight)], source, target)

    def _sharded(self) -> dict[str, Any]:
        """Return the rows, and each row-wise state of the fused optimizer, as far as this process has them."""
        tensors: dict[str, Any] = {}
        for name, tensor in self._inner.state_dict().items():
            if name.endswith(f".{self.table}.weight"):
                tensors["weight"] = tensor
        for name, states in self._inner.fused_optimizer.state_dict()["state"].items():
            if f".{name}".endswith(f".{self.table}.weight"):
                tensors |= {key: tensor for key, tensor in states.items() if hasattr(tensor, "local_shards")}
        return {key: tensor for key, tensor in tensors.items() if tensor.metadata().size[0] == self._rows}

    @property
    def _rows(self) -> int:
        """The number of rows of the table."""
        return self.encoder.own + self.encoder.ranges[0]


def _group(collection: Any) -> Any:
    """Return the processes over which a collection is sharded."""
    return collection._env.process_group


def _copy_sharded(tensors: dict[str, Any], source: Tensor, target: Tensor, group: Any) -> None:
    """Copy rows of sharded tensors; every process takes part, even if it holds none of the rows."""
    described = {
        key: (tuple(tensor.metadata().size[1:]), tensor.metadata().tensor_properties.dtype)
        for key, tensor in tensors.items()
    }
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, described, group=group)
    for key, (size, dtype) in sorted({key: shape for one in everyone for key, shape in one.items()}.items()):
        values = torch.zeros(len(source), *size, dtype=dtype, device=source.device)
        for mine, rows, columns, shard in _local(tensors.get(key), source):
            if size:
                values[mine.nonzero().squeeze(1), columns] = shard[rows]
            else:
                values[mine] = shard[rows]
        dist.all_reduce(values, group=group)
        for mine, rows, columns, shard in _local(tensors.get(key), target):
            shard[rows] = values[mine][:, columns] if size else values[mine]


def _local(tensor: Any, wanted: Tensor) -> Iterator[tuple[Tensor, Tensor, slice, Tensor]]:
    """Yield for each shard here which of the rows it has, their numbers in it, its columns, and its values."""
    for shard in () if tensor is None else tensor.local_shards():
        first, size = shard.metadata.shard_offsets, shard.metadata.shard_sizes
        mine = (wanted >= first[0]) & (wanted < first[0] + size[0])
        columns = slice(first[1], first[1] + size[1]) if len(first) > 1 else slice(None)
        yield mine, wanted[mine] - first[0], columns, shard.tensor.detach()


@watched.register
def _(module: CompressedEmbeddingBagCollection, table: str | None) -> Watched:
    return _WatchedCollection(module, table)


@watched.register
def _(module: CompressedEmbeddingCollection, table: str | None) -> Watched:
    return _WatchedCollection(module, table)
