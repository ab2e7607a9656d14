"""The optimizers of FBGEMM's table-batched embedding: all of ours on GPUs, three of them on CPU."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import UserEnabledConfigDefinition, WeightDecayMode

from embcomp.ops.optimizers import FusedOptimizerSettings, rule_of
from embcomp.torchrec.fused.loss_scale import LossScale


@dataclass(frozen=True)
class _Kind:
    """An optimizer of FBGEMM.

    Attributes:
        type: FBGEMM's name of it.
        constants: the constants that it takes, apart from the learning rate.
        on_cpu: whether it also runs on a CPU.
        decay: whether its weight decay on a GPU is inside the gradient or beside it; None if it is ignored.
        always: further arguments.
        decaying: further arguments with weight decay.
    """

    type: EmbOptimType
    constants: tuple[str, ...] = ()
    on_cpu: bool = False
    decay: Literal["inside", "beside"] | None = None
    always: tuple[tuple[str, Any], ...] = ()
    decaying: tuple[tuple[str, Any], ...] = ()


_MOMENTS = ("eps", "beta1", "beta2")
_KINDS = {
    "sgd": _Kind(EmbOptimType.EXACT_SGD, on_cpu=True),
    "adagrad": _Kind(EmbOptimType.EXACT_ADAGRAD, ("eps",), on_cpu=True),
    "rowwise_adagrad": _Kind(
        EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        ("eps",),
        on_cpu=True,
        decay="inside",
        decaying=(("weight_decay_mode", WeightDecayMode.L2),),
    ),
    "adam": _Kind(
        EmbOptimType.ADAM,
        _MOMENTS,
        decay="beside",
        always=(("extra_optimizer_config", UserEnabledConfigDefinition(use_rowwise_bias_correction=True)),),
    ),
    "partial_rowwise_adam": _Kind(EmbOptimType.PARTIAL_ROWWISE_ADAM, _MOMENTS, decay="beside"),
    "lamb": _Kind(EmbOptimType.LAMB, _MOMENTS, decay="beside"),
    "partial_rowwise_lamb": _Kind(EmbOptimType.PARTIAL_ROWWISE_LAMB, _MOMENTS, decay="beside"),
}


def fbgemm_type(settings: FusedOptimizerSettings) -> EmbOptimType:
    """Return FBGEMM's name of the optimizer."""
    return _KINDS[settings.name].type


def fbgemm_lacks(settings: FusedOptimizerSettings, on_gpu: bool) -> str | None:
    """Return what FBGEMM would ignore or do differently, and the remedy; None if it supports the settings."""
    kind, name = _KINDS[settings.name], settings.name
    where = "a GPU" if on_gpu else "a CPU"
    if not (on_gpu or kind.on_cpu):
        return f"FBGEMM has no {name} on {where}; take float32 tables, which embcomp trains itself"
    if settings.momentum:
        return f"FBGEMM has no momentum for {name}; use momentum=0, or Adam"
    if not settings.lazy:
        return "FBGEMM moves the rows alone that a batch reads; leave lazy=True"
    if settings.clip_grad_value < float("inf") or settings.clip_grad_norm < float("inf"):
        return (
            "FBGEMM shows no summed gradient of a row to clip: it can only clip that of each look-up, which is another "
            "optimizer; leave clip_grad_value and clip_grad_norm out"
        )
    if settings.weight_decay:
        beside = bool(rule_of(settings).decay_beside(settings))
        if not on_gpu or kind.decay is None:
            return f"FBGEMM has no weight_decay for {name} on {where}; use weight_decay=0"
        if (kind.decay == "beside") != beside:
            other = (
                "torch.optim.AdamW, whose weight decay is beside the gradient as FBGEMM's," if name == "adam" else ""
            )
            return f"FBGEMM's weight_decay for {name} is {kind.decay} the gradient; take {other} or weight_decay=0"
    return None


def fbgemm_settings(settings: FusedOptimizerSettings, on_gpu: bool) -> dict[str, Any]:
    """Return the settings for FBGEMM's table-batched embedding. Raise ValueError for settings that it would ignore."""
    lacks = fbgemm_lacks(settings, on_gpu)
    if lacks is not None:
        raise ValueError(lacks)
    kind, constants = _KINDS[settings.name], _constants(settings)
    given = {"optimizer": kind.type, "learning_rate": settings.lr, **dict(kind.always)}
    given.update({name: constants[name] for name in kind.constants})
    if settings.weight_decay:
        given.update(weight_decay=settings.weight_decay, **dict(kind.decaying))
    return given


def fbgemm_changes(settings: FusedOptimizerSettings) -> dict[str, float]:
    """Return the constants that may change between steps, by FBGEMM's names."""
    kind, constants = _KINDS[settings.name], _constants(settings)
    changes = {"lr": settings.lr, **{name: constants[name] for name in kind.constants}}
    return {**changes, "weight_decay": settings.weight_decay} if settings.weight_decay else changes


def check_fbgemm_scale(settings: FusedOptimizerSettings, loss_scale: LossScale) -> None:
    """Raise ValueError if a step whose scaled loss overflows would change rows."""
    if loss_scale.scales and rule_of(settings).moves_alone(settings):
        why = "weight_decay" if settings.weight_decay else "momentum"
        raise ValueError(
            f"FBGEMM's {settings.name} moves rows by their {why} in a step whose gradients overflow, which a "
            "GradScaler would leave out; train with bfloat16, which needs no scaler, or take SGD, Adagrad or "
            "RowWiseAdagrad without weight_decay"
        )


def _constants(settings: FusedOptimizerSettings) -> Mapping[str, float]:
    return {"eps": settings.eps, "beta1": settings.betas[0], "beta2": settings.betas[1]}
