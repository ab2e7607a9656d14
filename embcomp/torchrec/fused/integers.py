"""Collections whose rows are integers without a float copy: read as they are served, updated inside `backward()`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from embcomp.codecs.integers import IntegerCodec, Integers
from embcomp.nn.stores import pool_vectors
from embcomp.ops.checks import check_unchanged, versions
from embcomp.ops.integer_tables import draw_seed, empty_states, pool_integers, row_nbytes, update_integers
from embcomp.ops.optimizers import FusedOptimizerSettings
from embcomp.ops.tables import bags_of_tables
from embcomp.torchrec.checks import check_features
from embcomp.torchrec.fused.loss_scale import LossScale
from embcomp.torchrec.fused.sequences import look_up_each
from embcomp.torchrec.fused.weight import FusedWeight, all_frozen
from embcomp.tracing import NotScripted, one_node

_BLOCK = 1 << 16  # rows that are drawn at a time


class IntegerTable(nn.Module):
    """One table: `weight`, uint8 [rows, bytes], and the codec that decodes it.

    The weight is a parameter without a gradient, with the name of a float table's weight.
    """

    def __init__(self, config: EmbeddingConfig, coding: Integers, device: torch.device) -> None:
        super().__init__()
        rows, dim = config.num_embeddings, config.embedding_dim
        self.codec: IntegerCodec = coding.module(rows, dim)
        weight = torch.empty(rows, row_nbytes(dim, coding.bits), dtype=torch.uint8, device=device)
        self.weight = FusedWeight(weight)
        self._draw = config.init_fn
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the rows anew, block by block: they are never all floats at once."""
        if self.weight.is_meta:
            return
        for first in range(0, len(self.weight), _BLOCK):
            stored = self.weight[first : first + _BLOCK]
            values = torch.empty(len(stored), self.codec.dim, dtype=torch.float32, device=self.weight.device)
            if self._draw is not None:
                self._draw(values)
            self.codec.fit_(stored, values)

    def _apply(self, fn: Any, recurse: bool = True):
        if fn(self.weight.detach()).device.type not in ("cpu", "meta"):
            raise RuntimeError(
                "rows without a float copy (copy='none') are trained on the CPU: leave them there, or take copy='float'"
            )
        frozen = self.weight.frozen
        super()._apply(fn, recurse)
        self._keep_kind(frozen)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        frozen = self.weight.frozen
        super()._load_from_state_dict(*args, **kwargs)
        self._keep_kind(frozen)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._keep_kind(frozen=False)  # earlier versions saved a plain parameter

    def _keep_kind(self, frozen: bool) -> None:
        """Put the weight back into its class, where torch has put another parameter in its place."""
        if not isinstance(self.weight, FusedWeight):
            self.weight = FusedWeight(self.weight.detach())
            self.weight.requires_grad_(not frozen)


class IntegerTables(NotScripted, nn.Module):
    """A replacement of a torchrec collection of floats, with the same state-dict keys and whole look-ups.

    Args:
        configs: the configurations of the tables; their `data_type` is ignored.
        codings: the codings by table.
        pooled: True to return bags, as a KeyedTensor; False for vectors per id, as JaggedTensors by key.
        device: the device of the rows, CPU or meta.

    Raises:
        ValueError: the device is another one.
    """

    def __init__(
        self,
        configs: Sequence[EmbeddingConfig],
        codings: Mapping[str, Integers],
        pooled: bool,
        device: torch.device | None,
    ) -> None:
        super().__init__()
        home = torch.empty(0, device=device).device
        self.configs, self.names = list(configs), [config.name for config in configs]
        if home.type not in ("cpu", "meta"):
            raise ValueError(
                f"tables {self.names}: rows without a float copy (copy='none') are trained on the CPU, got {home}; "
                "build them there, or take copy='float'"
            )
        tables = {config.name: IntegerTable(config, codings[config.name], home) for config in configs}
        self.embeddings = nn.ModuleDict(tables)
        self.features = tuple(name for config in configs for name in config.feature_names)
        self.widths = [config.embedding_dim for config in configs for _ in config.feature_names]
        starts = torch.tensor([0, *self.widths], device="cpu").cumsum(0)[:-1]
        self.columns = list(starts.split([len(config.feature_names) for config in configs]))
        self.pooled = pooled
        self.settings: FusedOptimizerSettings | None = None
        self.states: list[dict[str, Tensor]] = []
        self.loss_scale = LossScale(False)

    def embedding_configs(self) -> list[EmbeddingConfig]:
        return self.configs

    def tables(self) -> list[tuple[Tensor, IntegerCodec]]:
        """Return the rows and the codec of each table."""
        return [(table.weight.detach(), table.codec) for table in self.embeddings.values()]  # pyright: ignore

    def attach(self, settings: FusedOptimizerSettings, loss_scale: LossScale) -> None:
        """Set how `backward()` trains the rows. Raise ValueError for an optimizer that is not supported."""
        self.states = [empty_states(settings, codec.rows) for _, codec in self.tables()]
        self.settings, self.loss_scale = settings, loss_scale

    def follow(self) -> None:
        """Apply changed settings: the next backward pass reads them."""

    @one_node
    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor | dict[str, JaggedTensor]:
        """Look up served vectors of rows, perhaps with weights: bags, or vectors per id."""
        weights = features.weights_or_none()
        check_features(features, self.features, weights is not None)
        if torch.compiler.is_compiling() or features.values().is_meta:
            return self._in_torch(features)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not all_frozen(self.embeddings, weights)):
            if not self.pooled:
                return look_up_each(features, self.features, self.widths, self._look_up)
            values = self._look_up(features.values().long(), features.offsets().long(), self.loss_scale.scaled(weights))
        return KeyedTensor(keys=list(self.features), length_per_key=self.widths, values=values)

    def _look_up(self, rows: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
        anchor = torch.zeros(1, device="cpu", requires_grad=True)  # so that autograd calls the backward pass
        return _ReadAndUpdate.apply(anchor, rows.contiguous(), offsets.contiguous(), weights, self)  # pyright: ignore

    def _in_torch(self, features: KeyedJaggedTensor) -> KeyedTensor | dict[str, JaggedTensor]:
        """Look up in plain torch, without gradients, for graphs and for shapes on the meta device."""
        if self.training and torch.is_grad_enabled():
            raise RuntimeError(
                f"tables {self.names}: rows without a float copy are not trained in a compiled graph; leave this "
                "module out of torch.compile, or take copy='float'"
            )
        asked, read = features.to_dict(), {}
        for config, (stored, codec) in zip(self.configs, self.tables(), strict=True):
            for key in config.feature_names:
                rows = asked[key].values().long()
                read[key] = codec(stored[rows], rows, None)
        if not self.pooled:
            return {key: JaggedTensor(values=values, lengths=asked[key].lengths()) for key, values in read.items()}
        bags = [
            pool_vectors(values, asked[key].offsets(), "sum", asked[key].weights_or_none())
            for key, values in read.items()
        ]
        return KeyedTensor(keys=list(self.features), length_per_key=self.widths, values=torch.cat(bags, 1))

    def extra_repr(self) -> str:
        return f"{self.settings or 'not trained yet: call fuse_'}"


class _ReadAndUpdate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, rows: Tensor, offsets: Tensor, weights: Tensor | None, tables: IntegerTables
    ) -> Tensor:
        given = None if weights is None else weights.detach().float().contiguous()
        parts = bags_of_tables(rows, offsets, given, tables.columns, tables.names)
        out = torch.empty(parts[0].batch, sum(tables.widths), dtype=torch.float32, device="cpu")
        for (stored, codec), bags in zip(tables.tables(), parts, strict=True):
            pool_integers(stored, codec.dim, codec.bits, bags, out)
        ctx.tables, ctx.parts, ctx.given = tables, parts, (rows, offsets, given)
        ctx.versions = versions(*ctx.given)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        tables: IntegerTables = ctx.tables
        settings = tables.settings
        if settings is None:
            raise RuntimeError(
                f"tables {tables.names} hold rows without a float copy, which no optimizer trains: call "
                "embcomp.torchrec.fuse_(model, optimizer=..., optimizer_kwargs=...) before training, or take "
                "copy='float'"
            )
        check_unchanged(ctx.versions, *ctx.given)
        grad, finite = tables.loss_scale.gradient(grads[0].float().contiguous())
        of_weights = None
        pairs = list(zip(tables.tables(), ctx.parts, strict=True))
        if ctx.needs_input_grad[3]:
            of_weights = torch.cat(
                [_weight_gradient(stored, codec, bags.own(), grad) for (stored, codec), bags in pairs]
            )
        if not finite:  # as a scaler leaves out the step of an optimizer
            return None, None, None, of_weights, None
        for ((stored, codec), bags), states in zip(pairs, tables.states, strict=True):
            update_integers(stored, codec.dim, codec.bits, states, bags, grad, settings, draw_seed())
        return None, None, None, of_weights, None


def _weight_gradient(stored: Tensor, codec: IntegerCodec, bags: Any, grad: Tensor) -> Tensor:
    read = codec.values(stored[bags.rows])
    return (grad[bags.columns_of_rows(codec.dim)] * read).sum(1)
