"""`fuse_`: one process trains tables without dense gradients, the optimizer running inside the backward pass."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from embcomp.ops.tables import FusedOptimizerSettings, OptimizerName
from embcomp.torchrec.engines import Engine, make_engine

_NAMES: dict[type[torch.optim.Optimizer], OptimizerName] = {
    torch.optim.SGD: "sgd",
    torch.optim.Adagrad: "adagrad",
    RowWiseAdagrad: "rowwise_adagrad",
}


class _Row(nn.Module):
    """Holds one table under the name that the unfused collection gives it, so that state dicts fit either."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)


class FusedTables(nn.Module):
    """What `fuse_` puts in the place of a torchrec collection: the same calls and state-dict keys.

    The parameters have `requires_grad=False`: no other optimizer may touch them.
    """

    def __init__(
        self, collection: EmbeddingBagCollection | EmbeddingCollection, settings: FusedOptimizerSettings
    ) -> None:
        super().__init__()
        self.bags = isinstance(collection, EmbeddingBagCollection)
        held = collection.embedding_bags if isinstance(collection, EmbeddingBagCollection) else collection.embeddings
        self.configs: list[Any] = list(_configs(collection))
        self.names = list(held.keys())
        sources: list[Tensor] = [module.weight for module in held.values()]  # pyright: ignore
        self.weighted = isinstance(collection, EmbeddingBagCollection) and collection.is_weighted()
        self.means = [
            c.pooling == PoolingType.MEAN if isinstance(c, EmbeddingBagConfig) else False for c in self.configs
        ]
        self.features = tuple(name for config in self.configs for name in config.feature_names)
        self.widths = [config.embedding_dim for config in self.configs for _ in config.feature_names]
        self.settings = settings
        self._attach(sources)

    def _attach(self, sources: list[Tensor]) -> None:
        engine = make_engine(sources, [len(config.feature_names) for config in self.configs], self.settings)
        self._engine = [engine]  # in a list: its tables are registered below, under the collection's own names
        named = zip(self.names, engine.weights, strict=True)
        tables = nn.ModuleDict({name: _Row(weight.detach()) for name, weight in named})
        self.add_module("embedding_bags" if self.bags else "embeddings", tables)

    @property
    def engine(self) -> Engine:
        """Tables, optimizer state and kernels."""
        return self._engine[0]

    def __getstate__(self) -> dict[str, Any]:
        engine = self.engine
        kept = {name: value for name, value in self.__dict__.items() if name not in ("_engine", "_modules")}
        return {**kept, "_saved": ([weight.detach() for weight in engine.weights], engine.states)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        weights, states = state.pop("_saved")
        super().__setstate__({**state, "_modules": {}})
        self._attach(weights)
        for mine, saved in zip(self.engine.states, states, strict=True):
            mine.copy_(saved)

    def _apply(self, fn: Any, recurse: bool = True):
        super()._apply(fn, recurse)
        for mine, table in zip(self.parameters(), self.engine.weights, strict=True):
            if mine.data_ptr() != table.data_ptr():
                raise RuntimeError("fused tables cannot change device or dtype: move the model first, then call fuse_")
        return self

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor | dict[str, JaggedTensor]:
        if list(features.keys()) != list(self.features):
            order = [features.keys().index(name) for name in self.features]
            features = features.permute(order)
        if self.bags:
            return self._pooled(features)
        return self._sequences(features)

    def _pooled(self, features: KeyedJaggedTensor) -> KeyedTensor:
        weights = features.weights() if self.weighted else None
        if any(self.means):
            weights = self._mean_weights(features, weights)
        values = self.engine(features.values().long(), features.offsets().long(), weights)
        return KeyedTensor(keys=list(self.features), length_per_key=self.widths, values=values)

    def _sequences(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Each id is a bag of its own; features take turns, because their numbers of ids differ."""
        sizes = features.length_per_key()
        longest = max(sizes, default=0)
        counts = torch.tensor(sizes, device=features.values().device).unsqueeze(-1)
        each = (torch.arange(longest, device=counts.device) < counts).long().reshape(-1)
        offsets = torch.cat([each.new_zeros(1), each.cumsum(0)])
        table = self.engine(features.values().long(), offsets, None)
        result, column = {}, 0
        lengths = features.lengths().view(len(self.features), -1)
        for i, (name, size, width) in enumerate(zip(self.features, sizes, self.widths, strict=True)):
            result[name] = JaggedTensor(values=table[:size, column : column + width], lengths=lengths[i])
            column += width
        return result

    def _mean_weights(self, features: KeyedJaggedTensor, weights: Tensor | None) -> Tensor:
        """1 / length for the ids of tables that pool by mean, 1 for the others."""
        if weights is not None:
            raise ValueError("weighted bags pool by sum, not by mean, as in torchrec")
        is_mean = [mean for mean, config in zip(self.means, self.configs, strict=True) for _ in config.feature_names]
        lengths = features.lengths().view(len(is_mean), -1)
        chosen = torch.tensor(is_mean, device=lengths.device).unsqueeze(-1)
        factors = torch.where(chosen, 1.0 / lengths.clamp(min=1), 1.0).reshape(-1)
        return torch.repeat_interleave(factors, lengths.reshape(-1), output_size=features.values().numel())

    def extra_repr(self) -> str:
        return f"{type(self.engine).__name__}, {self.settings}"


def _configs(
    collection: EmbeddingBagCollection | EmbeddingCollection,
) -> list[EmbeddingBagConfig] | list[EmbeddingConfig]:
    if isinstance(collection, EmbeddingBagCollection):
        return collection.embedding_bag_configs()
    return collection.embedding_configs()


def fuse_(
    model: nn.Module, *, optimizer: type[torch.optim.Optimizer], optimizer_kwargs: dict[str, Any] | None = None
) -> nn.Module:
    """Puts a fused optimizer under every torchrec collection of a model, compressed or not, in this process.

    A row is updated inside `backward()`, from the summed gradients of the batch, and no dense gradient is made. The
    other parameters are trained by an optimizer as usual; `fused_optimizer(model)` holds the state and the learning
    rate of the fused ones. Values set before are kept, and state-dict keys do not change.

    Args:
        model: changed in place.
        optimizer: torch.optim.SGD, torch.optim.Adagrad or torchrec.optim.RowWiseAdagrad.
        optimizer_kwargs: `lr`, `eps` and `weight_decay`.

    Returns:
        The model.

    Raises:
        ValueError: another optimizer, an unknown setting, no collection, or a width that FBGEMM cannot read.

    Example:
        >>> import torch, embcomp
        >>> from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
        >>> from embcomp.torchrec import CompressedEmbeddingBagCollection, fuse_
        >>> tables = [EmbeddingBagConfig(name="item", num_embeddings=1000, embedding_dim=8, feature_names=["item"])]
        >>> model = CompressedEmbeddingBagCollection(tables, {"*": embcomp.HashingTrick(rows=100)})
        >>> model = fuse_(model, optimizer=torch.optim.Adagrad, optimizer_kwargs={"lr": 0.1})
        >>> batch = KeyedJaggedTensor.from_lengths_sync(["item"], torch.tensor([3, 5]), torch.tensor([1, 1]))
        >>> before = model(batch).values().detach().clone()
        >>> model(batch).values().sum().backward()
        >>> bool((model(batch).values() < before).all())
        True
    """
    settings = _settings(optimizer, dict(optimizer_kwargs or {}))
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) in (EmbeddingBagCollection, EmbeddingCollection)
    ]
    if not found:
        raise ValueError("fuse_ found no torchrec collection inside the model (or it is sharded or fused already)")
    fused = [FusedTables(child, settings) for _, _, child in found]  # pyright: ignore[reportArgumentType]
    for (parent, name, _), tables in zip(found, fused, strict=True):
        setattr(parent, name, tables)
    return model


def _settings(optimizer: type[torch.optim.Optimizer], kwargs: dict[str, Any]) -> FusedOptimizerSettings:
    if optimizer not in _NAMES:
        raise ValueError(f"cannot fuse {optimizer!r}: choose one of {[kind.__name__ for kind in _NAMES]}")
    name = _NAMES[optimizer]
    defaults = {"sgd": (1e-3, 0.0), "adagrad": (1e-2, 1e-10), "rowwise_adagrad": (1e-2, 1e-10)}  # as in torch, torchrec
    lr, eps = defaults[name]
    settings = FusedOptimizerSettings(
        name, kwargs.pop("lr", lr), kwargs.pop("eps", eps), kwargs.pop("weight_decay", 0.0)
    )
    if kwargs:
        raise ValueError(f"cannot fuse {optimizer.__name__} with {sorted(kwargs)}: only lr, eps and weight_decay")
    return settings


class FusedOptimizer(torch.optim.Optimizer):
    """State and learning rate of the fused tables of a model, as an ordinary optimizer.

    Set `param_groups[0]["lr"]` (or use a scheduler) and call `step()` after each backward pass; the rows themselves
    have been updated by then. `state_dict` and `load_state_dict` carry the sums of squared gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tables = list(_fused(model))
        if not self.tables:
            raise ValueError("the model has no fused tables: call fuse_ first")
        weights = [weight for tables in self.tables for weight in tables.parameters()]
        super().__init__(weights, {"lr": self.tables[0].settings.lr})
        for tables in self.tables:
            for weight, state in zip(tables.parameters(), tables.engine.states, strict=False):
                self.state[weight] = {"sum": state}

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for tables in self.tables:
            tables.engine.set_learning_rate(self.param_groups[0]["lr"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing to do: no gradient is kept."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        held = {weight: dict(state) for weight, state in self.state.items()}
        super().load_state_dict(state_dict)
        for weight, state in held.items():
            state["sum"].copy_(self.state[weight]["sum"])  # the engine goes on using its own memory
            self.state[weight] = state
        self.step()


def fused_optimizer(model: nn.Module) -> FusedOptimizer:
    """The optimizer of a model's fused tables (see `FusedOptimizer`). Raises ValueError where there are none."""
    return FusedOptimizer(model)


def _fused(model: nn.Module) -> Iterator[FusedTables]:
    return (module for module in model.modules() if isinstance(module, FusedTables))
