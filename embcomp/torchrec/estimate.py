"""An estimate of sharded training before there is a GPU: torchrec's planner on tables without memory.

A sharded look-up sends three things. Encoded ids, and the lengths of the bags, go to the GPUs that hold rows of the
table; sums of rows come back to the GPU of the bag; gradients of these sums go the same way as the ids. With W GPUs, B
bags on each, L rows read per bag, D floats in a row, and S GPUs that hold rows of the table (1 for table-wise, all of a
node for table-row-wise, W for row-wise), a GPU sends on average, for each feature that reads the table,

    ids        (W - 1) / W * B * (L * 8 + S * 8)       int64 ids (with weights L * 12), an int64 length for each holder
    vectors    (W - 1) / W * B * S * D * 4             each holder sends its part of the sum gradients  as many bytes as
    vectors

Tables that are looked up id by id send a vector for each row instead, from the one GPU that holds it: B * L * D * 4.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError, PlannerErrorType, ShardingOption
from torchrec.distributed.types import ShardingType
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.optim import RowWiseAdagrad

from embcomp.methods.base import FLOAT_BYTES, Method
from embcomp.torchrec.collection.modules import CompressedEmbeddingBagCollection
from embcomp.torchrec.contents import configs_of

with warnings.catch_warnings():  # torch announces the end of torch.jit while it imports its own modules
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch.distributed.optim import _apply_optimizer_in_backward  # pyright: ignore[reportPrivateImportUsage]

_INT_BYTES = 8
# Column-wise sharding changes what row-wise Adagrad computes; data-parallel tables are not fused. In one node
# table-row-wise is row-wise, and the planner would toss a coin.
_SHARDINGS = [ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value]


@dataclass(frozen=True)
class Sent:
    """The bytes that a GPU sends to others in one training step, on average over the GPUs."""

    ids: float
    vectors: float
    gradients: float

    @property
    def total(self) -> float:
        return self.ids + self.vectors + self.gradients


@dataclass(frozen=True)
class Estimate:
    """The cost of a model's tables on a number of GPUs.

    Attributes:
        gpus: the number of GPUs.
        nbytes: the bytes of tables and maps, as `embcomp.nbytes` counts them.
        state: the bytes of the optimizer's state.
        sharding: the number of stores with each sharding; empty if they do not fit.
        memory: the bytes on each GPU, with the planner's buffers for ids and vectors; empty if they do not fit.
        sent: the bytes sent in a step; None if they do not fit.
        problem: the reason why they do not fit, or "".
    """

    gpus: int
    nbytes: int
    state: int
    sharding: Mapping[str, int]
    memory: tuple[int, ...]
    sent: Sent | None
    problem: str = ""


@dataclass(frozen=True)
class _Store:
    """One torchrec table, with the rows that each of its features reads per bag."""

    lookups: tuple[int, ...]
    dim: int
    pooled: bool = True
    weighted: bool = False


def estimate(
    tables: Sequence[EmbeddingBagConfig],
    methods: Mapping[str, Method],
    *,
    gpus: int,
    gpus_per_node: int = 8,
    gpu_bytes: int = 80 * 10**9,
    reserve: float = 0.15,
    batch_size: int = 8192,
    ids_per_bag: float = 1.0,
) -> Estimate:
    """Return the plan of torchrec's planner for compressed tables, trained with fused row-wise Adagrad.

    Nothing is allocated, and no GPU is needed. All rows are in GPU memory.

    Args:
        tables: the uncompressed tables.
        methods: a method for each table, as in `CompressedEmbeddingBagCollection`.
        gpus: the number of all GPUs; full nodes if there are more than one node has.
        gpus_per_node: the number of GPUs with fast links to each other.
        gpu_bytes: the memory of a GPU in bytes.
        reserve: the share of it that is left to dense layers and activations.
        batch_size: the number of samples on each GPU.
        ids_per_bag: the mean length of a bag.

    Raises:
        ValueError: a setting is out of range, GPUs do not fill their nodes, or a method refuses a table.

    Example:
        >>> import embcomp
        >>> from torchrec import EmbeddingBagConfig
        >>> table = EmbeddingBagConfig(name="url", num_embeddings=10**9, embedding_dim=64, feature_names=["url"])
        >>> estimate([table], {"*": embcomp.Full()}, gpus=1).problem
        'does not fit: 260 GB of rows and their state, 68 GB on 1 GPU; it takes at least 4'
        >>> found = estimate([table], {"*": embcomp.HashingTrick(rows=10**8)}, gpus=8, batch_size=1024)
        >>> found.nbytes, dict(found.sharding), found.sent.vectors == 7 / 8 * 1024 * 8 * 64 * 4
        (25600000008, {'row_wise': 1}, True)
    """
    _check(gpus, gpus_per_node, gpu_bytes, reserve, batch_size, ids_per_bag)
    collection = CompressedEmbeddingBagCollection(tables, methods, device="meta")
    rows = list(collection.branches.parameters())
    _apply_optimizer_in_backward(RowWiseAdagrad, rows, {})
    # On every GPU, as what combiners learn is.
    maps = sum(tensor.nbytes for tensor in (*collection.buffers(), *collection.assemble.parameters()))
    nbytes = sum(row.nbytes for row in rows) + maps
    state = sum(row.shape[0] * FLOAT_BYTES for row in rows)
    stores = _stores(collection)
    constraints = {
        name: ParameterConstraints(
            sharding_types=_SHARDINGS + [ShardingType.TABLE_ROW_WISE.value] * (gpus > gpus_per_node),
            compute_kernels=[EmbeddingComputeKernel.FUSED.value],
            pooling_factors=[n * ids_per_bag for n in store.lookups],
            is_weighted=store.weighted,
        )
        for name, store in stores.items()
    }
    chosen: list[ShardingOption] = []
    usable = int((gpu_bytes - maps) * (1 - reserve))
    try:
        EmbeddingShardingPlanner(
            topology=Topology(
                world_size=gpus,
                local_world_size=min(gpus, gpus_per_node),
                compute_device="cuda",
                hbm_cap=max(0, gpu_bytes - maps),
            ),
            batch_size=batch_size,
            storage_reservation=FixedPercentageStorageReservation(reserve),
            constraints=constraints,
            callbacks=[lambda options: chosen.extend(options) or options],
            debug=False,
        ).plan(collection, [EmbeddingBagCollectionSharder(), EmbeddingCollectionSharder()])  # pyright: ignore
    except PlannerError as error:
        if error.error_type not in (PlannerErrorType.INSUFFICIENT_STORAGE, PlannerErrorType.PARTITION):
            raise
        return Estimate(gpus, nbytes, state, {}, (), None, _problem(nbytes - maps + state, maps, usable, gpus))
    sharding: dict[str, int] = {}
    memory = [maps] * gpus
    for option in chosen:
        sharding[option.sharding_type] = sharding.get(option.sharding_type, 0) + 1
        for shard in option.shards:
            memory[shard.rank] += shard.storage.hbm  # pyright: ignore
    holders = {option.name: len({shard.rank for shard in option.shards}) for option in chosen}
    sent = _sent(stores, holders, gpus, batch_size, ids_per_bag)
    return Estimate(gpus, nbytes, state, sharding, tuple(memory), sent)


def _check(gpus: int, gpus_per_node: int, gpu_bytes: int, reserve: float, batch_size: int, ids_per_bag: float) -> None:
    for name, value in {"gpus": gpus, "gpus_per_node": gpus_per_node, "gpu_bytes": gpu_bytes}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if gpus > gpus_per_node and gpus % gpus_per_node:
        raise ValueError(
            f"gpus={gpus} is not a multiple of gpus_per_node={gpus_per_node}: give a multiple, or another gpus_per_node"
        )
    if not 0 <= reserve < 1:
        raise ValueError(f"reserve must be in [0, 1), got {reserve}")
    if batch_size < 1 or not 0 < ids_per_bag < math.inf:
        raise ValueError(f"batch_size and ids_per_bag must be positive, got {batch_size} and {ids_per_bag}")


def _stores(collection: nn.Module) -> dict[str, _Store]:
    stores: dict[str, _Store] = {}
    branches: Any = collection.branches
    for branch in branches.values():
        lookups = {read.key: read.lookups for read in branch.encoder.reads}
        for config in configs_of(branch.collection):
            reads = tuple(lookups[name] for name in config.feature_names)
            stores[config.name] = _Store(reads, config.embedding_dim, not branch.sequences, branch.encoder.weighted)
    return stores


def _sent(
    stores: Mapping[str, _Store], holders: Mapping[str, int], gpus: int, batch_size: int, ids_per_bag: float
) -> Sent:
    bags = (gpus - 1) / gpus * batch_size
    ids = vectors = 0.0
    for name, store in stores.items():
        for lookups in store.lookups:
            rows = lookups * ids_per_bag
            ids += bags * (rows * (_INT_BYTES + FLOAT_BYTES * store.weighted) + holders[name] * _INT_BYTES)
            vectors += bags * (holders[name] if store.pooled else rows) * store.dim * FLOAT_BYTES
    return Sent(ids, vectors, vectors)


def _problem(needed: int, maps: int, usable: int, gpus: int) -> str:
    have = f"{readable_bytes(max(0, usable) * gpus)} on {gpus} GPU" + "s" * (gpus > 1)
    rows = f"{readable_bytes(needed)} of rows and their state"
    if usable <= 0:
        return f"does not fit: {readable_bytes(maps)} of maps on every GPU"
    if needed <= usable * gpus:
        return f"does not fit: {rows}, {have}, but with buffers, or in whole shards, the planner finds no place"
    return f"does not fit: {rows}, {have}; it takes at least {math.ceil(needed / usable)}"


def readable_bytes(number: float) -> str:
    """Format a number of bytes with three digits and a decimal unit.

    Example:
        >>> readable_bytes(6.656e12), readable_bytes(68e9), readable_bytes(0)
        ('6.66 TB', '68 GB', '0 B')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= 0.9995 * size:
            return f"{float(f'{number / size:.3g}'):g} {unit}"
    return f"{number:.0f} B"
