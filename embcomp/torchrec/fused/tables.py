"""Fused tables: look-ups whose optimizer runs inside the backward pass, without dense gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollection,
    EmbeddingCollection,
    get_embedding_names_by_table,
)
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from embcomp.ops.grid import RowGrid
from embcomp.ops.optimizers import FusedOptimizerSettings
from embcomp.torchrec.checks import check_features
from embcomp.torchrec.contents import configs_of, weights_of
from embcomp.torchrec.fused.engines import Engine, NativeEngine, make_engine
from embcomp.torchrec.fused.loss_scale import LossScale
from embcomp.torchrec.fused.sequences import look_up_each
from embcomp.torchrec.fused.weight import FusedWeight, all_frozen
from embcomp.tracing import NotScripted


class _Row(nn.Module):
    """A module that holds one table under its name in the unfused collection, so that state dicts fit either."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = FusedWeight(weight)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any, **kwargs: Any):
        """Copy the state, even with `assign=True`, because the engine goes on using its own memory."""
        local_metadata = {**local_metadata, "assign_to_params_buffers": False}
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True):
        if fn(self.weight.detach()).data_ptr() != self.weight.data_ptr():
            raise RuntimeError("fused tables cannot change device or dtype: move the model first, then call fuse_")
        return self


class FusedTables(NotScripted, nn.Module):
    """The replacement that `fuse_` puts in the place of a torchrec collection: the same calls and state-dict keys.

    The parameters have `requires_grad=False`: no other optimizer may touch them. Frozen tables are read without an
    update (`FusedWeight`).
    """

    def __init__(
        self,
        collection: EmbeddingBagCollection | EmbeddingCollection,
        settings: FusedOptimizerSettings,
        loss_scale: LossScale | None = None,
    ) -> None:
        super().__init__()
        self.loss_scale = loss_scale or LossScale()
        self.bags = isinstance(collection, EmbeddingBagCollection)
        self.configs: list[Any] = configs_of(collection)
        weights = weights_of(collection)
        self.names, sources = list(weights), list(weights.values())
        self.weighted = isinstance(collection, EmbeddingBagCollection) and collection.is_weighted()
        self.means = [
            c.pooling == PoolingType.MEAN if isinstance(c, EmbeddingBagConfig) else False for c in self.configs
        ]
        self.features = tuple(name for config in self.configs for name in config.feature_names)
        self.keys = [key for keys in get_embedding_names_by_table(self.configs) for key in keys]
        self.need_indices = isinstance(collection, EmbeddingCollection) and collection.need_indices()
        self.widths = [config.embedding_dim for config in self.configs for _ in config.feature_names]
        self.settings = settings
        self._attach(sources)

    def _attach(self, sources: Sequence[Tensor]) -> None:
        numbers = [len(config.feature_names) for config in self.configs]
        engine = make_engine(dict(zip(self.names, sources, strict=True)), numbers, self.settings, self.loss_scale)
        self._engine = [engine]  # in a list: its tables are registered below, under the collection's own names
        named = zip(self.names, engine.weights, strict=True)
        tables = nn.ModuleDict({name: _Row(weight.detach()) for name, weight in named})
        self.add_module("embedding_bags" if self.bags else "embeddings", tables)

    @property
    def engine(self) -> Engine:
        """The engine, which holds tables, optimizer state and kernels."""
        return self._engine[0]

    def __getstate__(self) -> dict[str, Any]:
        engine = self.engine
        kept = {name: value for name, value in self.__dict__.items() if name not in ("_engine", "_modules")}
        frozen = [name for name, row in self._rows.items() if getattr(row.weight, "frozen", False)]
        return {**kept, "_saved": ([weight.detach() for weight in engine.weights], engine.states), "_frozen": frozen}

    def __setstate__(self, state: dict[str, Any]) -> None:
        (weights, states), frozen = state.pop("_saved"), state.pop("_frozen", [])  # earlier versions had no `_frozen`
        super().__setstate__({"loss_scale": LossScale(), **state, "_modules": {}})
        self._attach(weights)
        for name in frozen:
            self._rows[name].requires_grad_(False)
        # Earlier versions saved one sum for each table, or nothing.
        given: list[Any] = [{"sum": each} if isinstance(each, Tensor) else each for each in states]
        for mine, kept in zip(self.engine.states, given or [{} for _ in weights], strict=True):
            for name, tensor in mine.items():
                tensor.copy_(kept[name])

    def forward(self, features: KeyedJaggedTensor, private: bool = False) -> KeyedTensor | dict[str, JaggedTensor]:
        """Look up rows. `private` ones are those of an encoder, whose memory nobody else can write: checked once."""
        if not private:
            check_features(features, self.features, self.weighted)
        if list(features.keys()) != list(self.features):
            features = _in_order(features, self.features)
        with torch.set_grad_enabled(self._updates(features.weights_or_none())):
            return self._pooled(features, private) if self.bags else self._sequences(features)

    def _updates(self, *others: Tensor | None) -> bool:
        """Return whether a backward pass is to come that updates the tables."""
        return torch.is_grad_enabled() and not all_frozen(self._rows, *others)

    @property
    def _rows(self) -> nn.ModuleDict:
        return self.get_submodule("embedding_bags" if self.bags else "embeddings")  # pyright: ignore

    def _pooled(self, features: KeyedJaggedTensor, private: bool) -> KeyedTensor:
        weights = self.loss_scale.scaled(features.weights()) if self.weighted else None
        if any(self.means):
            weights = self._mean_weights(features, weights)
        known = {"private": private} if isinstance(self.engine, NativeEngine) else {}
        values = self.engine(features.values().long(), features.offsets().long(), weights, **known)
        return KeyedTensor(keys=self.keys, length_per_key=self.widths, values=values)

    def rounded_bags(self, features: KeyedJaggedTensor, grids: Mapping[str, RowGrid]) -> KeyedTensor:
        """Sum bags of rows that are rounded as they are read, if `rounds`; tables without a grid are read as they are.

        Args:
            features: the rows, perhaps with weights.
            grids: the grids by table.
        """
        assert isinstance(self.engine, NativeEngine)
        check_features(features, self.features, features.weights_or_none() is not None)
        weights = self.loss_scale.scaled(features.weights_or_none())
        scaled = {name: replace(grid, step=self.loss_scale.scaled(grid.step)) for name, grid in grids.items()}
        chosen = [scaled.get(name) for name in self.names]
        with torch.set_grad_enabled(self._updates(weights, *(grid.step for grid in scaled.values()))):
            values = self.engine(features.values().long(), features.offsets().long(), weights, chosen)
        return KeyedTensor(keys=self.keys, length_per_key=self.widths, values=values)

    @property
    def states(self) -> list[dict[str, Tensor]]:
        """The state of the optimizer for each table, by torch.optim's names."""
        return self.engine.states

    def follow(self) -> None:
        """Apply changed settings, from the next backward pass on."""
        self.engine.follow()

    @property
    def rounds(self) -> bool:
        """True if `rounded_bags` is available."""
        return isinstance(self.engine, NativeEngine)

    def _sequences(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        def look_up(rows: Tensor, offsets: Tensor) -> Tensor:
            return self.engine(rows, offsets, None)

        return look_up_each(features, self.keys, self.widths, look_up, self.need_indices)

    def _mean_weights(self, features: KeyedJaggedTensor, weights: Tensor | None) -> Tensor:
        """The weights 1 / length for the ids of tables that pool by mean, 1 for others."""
        if weights is not None:
            raise ValueError("weighted bags pool by sum, not by mean, as in torchrec")
        is_mean = [mean for mean, config in zip(self.means, self.configs, strict=True) for _ in config.feature_names]
        lengths = features.lengths().view(len(is_mean), -1)
        chosen = torch.tensor(is_mean, device=lengths.device).unsqueeze(-1)
        factors = torch.where(chosen, 1.0 / lengths.clamp(min=1), 1.0).reshape(-1)
        return torch.repeat_interleave(factors, lengths.reshape(-1), output_size=features.values().numel())

    def extra_repr(self) -> str:
        return f"{type(self.engine).__name__}, {self.settings}"


def _in_order(features: KeyedJaggedTensor, names: Sequence[str]) -> KeyedJaggedTensor:
    """Select features, some perhaps twice (the gradient of KeyedJaggedTensor.permute would read foreign memory)."""
    jagged = features.to_dict()
    parts = [jagged[name] for name in names]
    return KeyedJaggedTensor(
        keys=list(names),
        values=torch.cat([part.values() for part in parts]),
        weights=None if features.weights_or_none() is None else torch.cat([part.weights() for part in parts]),
        lengths=torch.cat([part.lengths() for part in parts]),
        stride=features.stride(),
        length_per_key=[part.values().numel() for part in parts],
    )
