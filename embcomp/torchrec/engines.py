"""Two engines behind `fuse_`: FBGEMM's table-batched embedding (any device), and `embcomp.ops.tables` (CPU)."""

import abc
from collections.abc import Sequence
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn

from embcomp.ops import native, tables
from embcomp.ops.hashing import check_rows_inside
from embcomp.ops.tables import Bags, FusedOptimizerSettings


class Engine(nn.Module, abc.ABC):
    """Sum-pooled look-ups of several tables whose rows are updated inside the backward pass.

    Attributes:
        weights: the tables, [rows, dim] each; updated in place.
        states: sums of squared gradients, one for each table (empty for SGD).
    """

    weights: list[Tensor]
    states: list[Tensor]

    @abc.abstractmethod
    def forward(self, rows: Tensor, offsets: Tensor, weights: Tensor | None) -> Tensor:
        """KeyedJaggedTensor layout (rows [N], offsets [features * batch + 1]) -> [batch, sum of widths]."""

    @abc.abstractmethod
    def set_learning_rate(self, lr: float) -> None:
        """Takes effect with the next backward pass."""


class FbgemmEngine(Engine):
    """FBGEMM's SplitTableBatchedEmbeddingBags; widths must be multiples of 4."""

    def __init__(self, sources: Sequence[Tensor], features: Sequence[int], settings: FusedOptimizerSettings) -> None:
        super().__init__()
        odd = [weight.shape[1] for weight in sources if weight.shape[1] % 4]
        if odd:
            raise ValueError(f"FBGEMM reads rows whose width is a multiple of 4, got {odd}; choose other widths")
        cuda = sources[0].device.type == "cuda"
        location = EmbeddingLocation.DEVICE if cuda else EmbeddingLocation.HOST
        compute = ComputeDevice.CUDA if cuda else ComputeDevice.CPU
        kinds = {
            "sgd": EmbOptimType.EXACT_SGD,
            "adagrad": EmbOptimType.EXACT_ADAGRAD,
            "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        }
        constants: dict[str, Any] = {"learning_rate": settings.lr}
        if settings.name != "sgd":
            constants["eps"] = settings.eps
        if settings.name == "rowwise_adagrad":
            constants["weight_decay"] = settings.weight_decay
        elif settings.weight_decay:
            raise ValueError(f"FBGEMM has no weight_decay for {settings.name}; use row-wise Adagrad or weight_decay=0")
        self.tbe = SplitTableBatchedEmbeddingBagsCodegen(
            [(weight.shape[0], weight.shape[1], location, compute) for weight in sources],
            feature_table_map=[table for table, number in enumerate(features) for _ in range(number)],
            optimizer=kinds[settings.name],
            pooling_mode=PoolingMode.SUM,
            device=sources[0].device,
            **constants,
        )
        self.weights = self.tbe.split_embedding_weights()
        self.states = [state[0] for state in self.tbe.split_optimizer_states()] if settings.name != "sgd" else []
        for weight, source in zip(self.weights, sources, strict=True):
            weight.detach().copy_(source)

    def forward(self, rows: Tensor, offsets: Tensor, weights: Tensor | None) -> Tensor:
        return self.tbe(indices=rows, offsets=offsets, per_sample_weights=weights)

    def set_learning_rate(self, lr: float) -> None:
        self.tbe.set_learning_rate(lr)


class NativeEngine(Engine):
    """`embcomp.ops.tables`: float32 on CPU, one thread, any width."""

    def __init__(self, sources: Sequence[Tensor], features: Sequence[int], settings: FusedOptimizerSettings) -> None:
        super().__init__()
        self.settings = settings
        self.weights = [tables.empty_table(*source.shape).copy_(source.detach()) for source in sources]
        shapes = [tables.state_shape(settings.name, *source.shape) for source in sources]
        self.states = [] if settings.name == "sgd" else [tables.empty_table(*shape).zero_() for shape in shapes]
        widths = [weight.shape[1] for weight, number in zip(sources, features, strict=True) for _ in range(number)]
        starts = torch.tensor([0, *widths]).cumsum(0)
        self.width = int(starts[-1])
        self.columns = list(starts[:-1].split(list(features)))
        # Autograd calls the backward pass of what depends on a parameter; the tables themselves are outside it.
        self.anchor = torch.zeros(1, requires_grad=True)

    def forward(self, rows: Tensor, offsets: Tensor, weights: Tensor | None) -> Tensor:
        return _PoolAndUpdate.apply(self.anchor, rows.contiguous(), offsets.contiguous(), weights, self)  # pyright: ignore

    def set_learning_rate(self, lr: float) -> None:
        self.settings.lr = lr

    def bags(self, rows: Tensor, offsets: Tensor, weights: Tensor | None) -> list[Bags]:
        """What each table is asked for."""
        batch = (offsets.numel() - 1) // sum(columns.numel() for columns in self.columns)
        result, first = [], 0
        for columns in self.columns:
            last = first + columns.numel() * batch
            result.append(Bags(rows, offsets[first : last + 1], weights, columns))
            first = last
        return result


class _PoolAndUpdate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, rows: Tensor, offsets: Tensor, weights: Tensor | None, engine: NativeEngine):
        given = None if weights is None else weights.detach().float().contiguous()
        parts = engine.bags(rows, offsets, given)
        for table, bags in zip(engine.weights, parts, strict=True):
            check_rows_inside(bags.rows, bags.offsets, table.shape[0])
        out = torch.empty(parts[0].batch, engine.width)
        for table, bags in zip(engine.weights, parts, strict=True):
            tables.pool_bags(table, bags, out)
        ctx.engine, ctx.parts = engine, parts
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        engine: NativeEngine = ctx.engine
        grad = grads[0].float().contiguous()
        weight_grad = None
        if ctx.needs_input_grad[3]:
            parts = zip(engine.weights, ctx.parts, strict=True)
            weight_grad = torch.cat([tables.weight_gradient(table, bags, grad) for table, bags in parts])
        states = engine.states or [torch.empty(0)] * len(engine.weights)
        for table, state, bags in zip(engine.weights, states, ctx.parts, strict=True):
            tables.update_rows(table, state, bags, grad, engine.settings)
        return None, None, None, weight_grad, None


def make_engine(sources: Sequence[Tensor], features: Sequence[int], settings: FusedOptimizerSettings) -> Engine:
    """The engine for these tables; `features` counts the features that read each.

    The native one on CPU, where it is at least as fast as FBGEMM and takes every width; FBGEMM's on a GPU, and where
    there is no compiler and the widths allow it.
    """
    float32 = all(source.dtype == torch.float32 for source in sources)
    if sources[0].device.type == "cpu" and float32:
        narrow = any(source.shape[1] % 4 for source in sources)
        if native.library() is not None or narrow:
            return NativeEngine(sources, features, settings)
    return FbgemmEngine(sources, features, settings)
