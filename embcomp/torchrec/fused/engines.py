"""The two engines of `fuse_`: FBGEMM's table-batched embedding (any device), and `embcomp.ops.tables` (CPU)."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from embcomp.ops import native, tables
from embcomp.ops.checks import check_unchanged, versions
from embcomp.ops.grid import RowGrid
from embcomp.ops.optimizers import FusedOptimizerSettings
from embcomp.ops.outputs import Outputs
from embcomp.ops.tables import Bags
from embcomp.ops.updates import empty_states, update_tables
from embcomp.torchrec.fused.fbgemm import check_fbgemm_scale, fbgemm_changes, fbgemm_lacks, fbgemm_settings
from embcomp.torchrec.fused.loss_scale import LossScale


class Engine(nn.Module, abc.ABC):
    """An engine of sum-pooled look-ups of several tables whose rows are updated inside the backward pass.

    Args:
        sources: the tables by name, [rows, dim] each, which are copied.
        features: the number of features that read each table.
        settings: the optimizer and its constants, which may change.
        loss_scale: the scale of the loss, which is removed from the gradients.

    Attributes:
        weights: the tables, [rows, dim] each, updated in place.
        states: the state of the optimizer for each table, by torch.optim's names.
    """

    weights: list[Tensor]
    states: list[dict[str, Tensor]]

    def __init__(
        self,
        sources: Mapping[str, Tensor],
        features: Sequence[int],
        settings: FusedOptimizerSettings,
        loss_scale: LossScale | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.loss_scale = loss_scale or LossScale(False)
        self.names = list(sources)
        widths = [
            source.shape[1] for source, number in zip(sources.values(), features, strict=True) for _ in range(number)
        ]
        starts = torch.tensor([0, *widths], device="cpu").cumsum(0)
        self.width = int(starts[-1])
        self.columns = list(starts[:-1].split(list(features)))

    @abc.abstractmethod
    def forward(self, rows: Tensor, offsets: Tensor, weights: Tensor | None) -> Tensor:
        """Pool rows [N] with offsets [features * batch + 1] (KeyedJaggedTensor layout): [batch, sum of widths].

        Raises:
            IndexError: a row is not in its table (on a GPU an asynchronous assertion of FBGEMM).
        """

    def follow(self) -> None:
        """Apply changed settings, from the next backward pass on."""

    def bags(self, rows: Tensor, offsets: Tensor, weights: Tensor | None) -> list[Bags]:
        """Split the bags by table. Raise ValueError if offsets do not cover the rows."""
        return tables.bags_of_tables(rows, offsets, weights, self.columns, self.names)


class FbgemmEngine(Engine):
    """The engine of FBGEMM's SplitTableBatchedEmbeddingBags; widths must be multiples of 4."""

    def __init__(
        self,
        sources: Mapping[str, Tensor],
        features: Sequence[int],
        settings: FusedOptimizerSettings,
        loss_scale: LossScale | None = None,
    ) -> None:
        super().__init__(sources, features, settings, loss_scale)
        tables = list(sources.values())
        odd = {name: source.shape[1] for name, source in sources.items() if source.shape[1] % 4}
        if odd:
            raise ValueError(f"FBGEMM reads rows whose width is a multiple of 4, got {odd}; choose other widths")
        types = {name: source.dtype for name, source in sources.items()}
        if len(set(types.values())) > 1:
            raise ValueError(f"fused tables of one collection share a data type, got {types}; choose one")
        device = tables[0].device
        self.on_gpu = device.type == "cuda"
        check_fbgemm_scale(settings, self.loss_scale)
        location = EmbeddingLocation.DEVICE if self.on_gpu else EmbeddingLocation.HOST
        compute = ComputeDevice.CUDA if self.on_gpu else ComputeDevice.CPU
        self.tbe = SplitTableBatchedEmbeddingBagsCodegen(
            [(table.shape[0], table.shape[1], location, compute) for table in tables],
            feature_table_map=[i for i, number in enumerate(features) for _ in range(number)],
            weights_precision=SparseType.from_dtype(tables[0].dtype),
            output_dtype=SparseType.FP32,
            pooling_mode=PoolingMode.SUM,
            bounds_check_mode=BoundsCheckMode.FATAL,  # the default reads row 0 instead, without an error
            device=device,
            **fbgemm_settings(settings, self.on_gpu),
        )
        self.weights = self.tbe.split_embedding_weights()
        self.states = self.tbe.get_optimizer_state() or [{} for _ in tables]
        for weight, source in zip(self.weights, tables, strict=True):
            weight.detach().copy_(source)

    def forward(self, rows: Tensor, offsets: Tensor, weights: Tensor | None) -> Tensor:
        if self.on_gpu:
            return self.loss_scale.unscaled(self.tbe(indices=rows, offsets=offsets, per_sample_weights=weights))
        for table, own in zip(self.weights, self.bags(rows, offsets, weights), strict=True):
            own.check(table.shape, self.width)
        if not torch.is_inference_mode_enabled():
            return self.loss_scale.unscaled(self.tbe(indices=rows, offsets=offsets, per_sample_weights=weights))
        with torch.inference_mode(False), torch.no_grad():  # on CPU the look-up is known to autograd alone
            return self.tbe(indices=rows.clone(), offsets=offsets.clone(), per_sample_weights=weights)

    def follow(self) -> None:
        self.tbe.update_hyper_parameters(fbgemm_changes(self.settings))


class NativeEngine(Engine):
    """The engine of `embcomp.ops.tables`: float32 on CPU, any width.

    With `in_place` it trains the memory of the given tables, without a copy.
    """

    def __init__(
        self,
        sources: Mapping[str, Tensor],
        features: Sequence[int],
        settings: FusedOptimizerSettings,
        loss_scale: LossScale | None = None,
        in_place: bool = False,
    ) -> None:
        super().__init__(sources, features, settings, loss_scale)
        given = [source.detach() for source in sources.values()]
        self.weights = given if in_place else [tables.empty_table(*source.shape).copy_(source) for source in given]
        self.states = [empty_states(settings, *source.shape) for source in given]
        self.outputs = Outputs()
        # Autograd calls the backward pass of what depends on a parameter; the tables themselves are outside it.
        self.anchor = torch.zeros(1, device="cpu", requires_grad=True)

    def forward(
        self,
        rows: Tensor,
        offsets: Tensor,
        weights: Tensor | None,
        grids: Sequence[RowGrid | None] | None = None,
        private: bool = False,
    ) -> Tensor:
        """Pool rows as `Engine.forward` does; the rows of a table with a grid are rounded as they are read.

        Where rows and offsets are `private`, memory that nobody else writes, the backward pass does not check again.
        """
        grids = grids or [None] * len(self.weights)
        steps = [None if grid is None else grid.step for grid in grids]
        return _PoolAndUpdate.apply(  # pyright: ignore[reportReturnType]
            self.anchor, rows.contiguous(), offsets.contiguous(), weights, self, grids, private, *steps
        )


class _PoolAndUpdate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        rows: Tensor,
        offsets: Tensor,
        weights: Tensor | None,
        engine: NativeEngine,
        grids: Sequence[RowGrid | None],
        private: bool,
        *steps: Tensor | None,  # those of the grids, for their gradients
    ) -> Tensor:
        given = None if weights is None else weights.detach().float().contiguous()
        parts = engine.bags(rows, offsets, given)
        out = engine.outputs.empty(parts[0].batch, engine.width)
        fixed = [None if grid is None else replace(grid, step=grid.step.detach()) for grid in grids]
        requests = tables.pool_tables(engine.weights, parts, out, fixed)
        ctx.requests = requests if private and given is None else None
        ctx.engine, ctx.parts, ctx.grids, ctx.given = engine, parts, fixed, (rows, offsets, given)
        ctx.versions = versions(*ctx.given)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        engine: NativeEngine = ctx.engine
        check_unchanged(ctx.versions, *ctx.given)
        grad, finite = engine.loss_scale.gradient(grads[0].float().contiguous())
        weight_grad = None
        if ctx.needs_input_grad[3]:
            parts = zip(engine.weights, ctx.parts, ctx.grids, strict=True)
            weight_grad = torch.cat([tables.weight_gradient(table, bags, grad, grid) for table, bags, grid in parts])
        if not finite:  # as a scaler leaves out the step of an optimizer
            return None, None, None, weight_grad, None, None, None, *[_not_finite(grid) for grid in ctx.grids]
        of_steps = update_tables(
            engine.weights, engine.states, ctx.parts, grad, engine.settings, ctx.grids, ctx.requests
        )
        return None, None, None, weight_grad, None, None, None, *of_steps


def _not_finite(grid: RowGrid | None) -> Tensor | None:
    """Return the gradient of a grid's steps in a batch that overflows, from which the scaler sees that it does."""
    return None if grid is None else torch.full_like(grid.step, torch.nan)


def make_engine(
    sources: Mapping[str, Tensor],
    features: Sequence[int],
    settings: FusedOptimizerSettings,
    loss_scale: LossScale | None = None,
) -> Engine:
    """Make the engine for these tables; `features` has the number of features that read each.

    The native engine is used on CPU, where it is at least as fast as FBGEMM, and supports every width and optimizer.
    FBGEMM's engine is used on a GPU, for tables of half precision, and without a compiler if it supports the settings.
    """
    if any(source.device.type == "meta" for source in sources.values()):
        raise ValueError(f"cannot fuse {list(sources)} on the meta device: give the tables memory and rows first")
    if all(source.device.type == "cpu" and source.dtype == torch.float32 for source in sources.values()):
        narrow = any(source.shape[1] % 4 for source in sources.values())
        if native.library() is not None or narrow or fbgemm_lacks(settings, on_gpu=False):
            return NativeEngine(sources, features, settings, loss_scale)
    return FbgemmEngine(sources, features, settings, loss_scale)
