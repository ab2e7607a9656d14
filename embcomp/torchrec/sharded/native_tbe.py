"""FBGEMM's table-batched embedding with embcomp's engine inside, for optimizers that FBGEMM has only on GPUs."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor
from torchrec.distributed import batched_embedding_kernel

from embcomp.ops.optimizers import FusedOptimizerSettings
from embcomp.torchrec.fused.engines import NativeEngine
from embcomp.torchrec.fused.fbgemm import fbgemm_type
from embcomp.torchrec.fused.loss_scale import LossScale, Unscaled

_SETTINGS = "embcomp_settings"


def native_params(settings: FusedOptimizerSettings) -> dict[str, Any]:
    """Return the parameters that torchrec's sharders pass to `NativeTbe`, hashable as they group tables by them."""
    return {
        "optimizer": fbgemm_type(settings),  # the planner asks how much memory the state takes
        "learning_rate": settings.lr,
        _SETTINGS: tuple(asdict(settings).items()),
    }


@contextlib.contextmanager
def native_tbe() -> Iterator[None]:
    """Let torchrec build `NativeTbe` for its tables in this context: it has no argument for the kernel's class."""
    name = SplitTableBatchedEmbeddingBagsCodegen.__name__
    setattr(batched_embedding_kernel, name, NativeTbe)
    try:
        yield
    finally:
        setattr(batched_embedding_kernel, name, SplitTableBatchedEmbeddingBagsCodegen)


class NativeTbe(SplitTableBatchedEmbeddingBagsCodegen):
    """Tables of FBGEMM whose look-ups, updates and optimizer state are embcomp's.

    Args:
        arguments: the arguments of FBGEMM's class, with `native_params`.
    """

    def __init__(self, *args: Any, **arguments: Any) -> None:
        given = arguments.pop(_SETTINGS)
        super().__init__(*args, **{**arguments, "optimizer": EmbOptimType.EXACT_SGD})
        self.settings = FusedOptimizerSettings(**dict(given))
        self.features = [self.feature_table_map.count(table) for table in range(len(self.embedding_specs))]
        weights = {str(number): weight for number, weight in enumerate(self.split_embedding_weights())}
        self.sequences = self.pooling_mode == PoolingMode.NONE
        if self.sequences:  # each table alone: they are asked for different numbers of vectors
            engines = [NativeEngine({name: each}, [1], self.settings, in_place=True) for name, each in weights.items()]
        else:
            engines = [NativeEngine(weights, self.features, self.settings, in_place=True)]
        self.engines = torch.nn.ModuleList(engines)

    def leave_out_overflows(self, scaled: bool) -> None:
        """Skip steps whose gradient is not finite, if the loss is scaled; then all ranks have such a gradient."""
        for engine in self.engines:
            engine.loss_scale = Unscaled() if scaled else LossScale(False)  # pyright: ignore

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        indices: Tensor,
        offsets: Tensor,
        per_sample_weights: Tensor | None = None,
        feature_requires_grad: Tensor | None = None,
        batch_size_per_feature_per_rank: list[list[int]] | None = None,
        **others: Any,
    ) -> Tensor:
        if feature_requires_grad is not None or batch_size_per_feature_per_rank is not None:
            raise ValueError(
                f"{self.settings.name} on CPU takes batches of one size for all features, all of them trained; pad the "
                "batches, or take SGD, Adagrad or RowWiseAdagrad"
            )
        rows, offsets = indices.long().contiguous(), offsets.long().contiguous()
        if not self.sequences:
            return self.engines[0](rows, offsets, self._weights(offsets, per_sample_weights))
        batch, first, vectors = (offsets.numel() - 1) // sum(self.features), 0, []
        for engine, features in zip(self.engines, self.features, strict=True):
            last = first + features * batch
            own = rows[int(offsets[first]) : int(offsets[last])]
            vectors.append(engine(own, torch.arange(len(own) + 1, device="cpu"), None))
            first = last
        return torch.cat(vectors)

    def _weights(self, offsets: Tensor, given: Tensor | None) -> Tensor | None:
        if self.pooling_mode != PoolingMode.MEAN:
            return given
        if given is not None:
            raise ValueError("weighted bags pool by sum, not by mean, as in torchrec")
        lengths = offsets.diff()
        return torch.repeat_interleave(1.0 / lengths.clamp(min=1), lengths)

    @property
    def states(self) -> list[dict[str, Tensor]]:
        """The state of the optimizer for each table, by torch.optim's names."""
        return [states for engine in self.engines for states in engine.states]  # pyright: ignore

    def get_optimizer_state(self) -> list[dict[str, Tensor]]:
        return self.states

    def split_optimizer_states(self) -> list[list[Tensor]]:
        return [list(states.values()) for states in self.states]

    def set_learning_rate(self, lr: float) -> None:
        super().set_learning_rate(lr)
        self.settings.lr = lr

    def update_hyper_parameters(self, params_dict: Mapping[str, float]) -> None:
        for name, value in params_dict.items():
            if name in ("beta1", "beta2"):
                first, second = self.settings.betas
                self.settings.betas = (value, second) if name == "beta1" else (first, value)
            elif name in ("lr", "eps", "weight_decay"):
                setattr(self.settings, name, value)
            else:
                raise ValueError(f"{self.settings.name} has no {name!r} that may change")
