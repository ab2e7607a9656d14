"""Loss scaling (`torch.amp.GradScaler`) for tables that `backward()` updates, before a scaler could unscale."""

import gc
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.autograd.function import once_differentiable

Scaler = GradScaler | Literal[False] | None


class LossScale:
    """A helper that removes the scale of the loss from the gradients that reach fused tables.

    Args:
        scaler: the scaler of the loss; False if there is none; None if it was not given. With None the scalers of the
            process are searched from time to time, and one that is in use is an error.
        verb: the name of the function that put the optimizer into the backward pass, for messages.
        group: the processes that hold the rows together. If a step overflows on one of them, all skip it.
    """

    def __init__(self, scaler: Scaler = None, verb: str = "fuse_", group: dist.ProcessGroup | None = None) -> None:
        if not (scaler is None or scaler is False or isinstance(scaler, GradScaler)):
            raise ValueError(f"grad_scaler must be a torch.amp.GradScaler, False or None, got {scaler!r}")
        self.scaler, self.verb, self.group = scaler, verb, group
        self.calls = 0

    def __reduce__(self) -> Any:
        """Copy or pickle without the scaler: that of the copied model is another one."""
        return LossScale, (None if isinstance(self.scaler, GradScaler) else self.scaler, self.verb)

    @property
    def scales(self) -> bool:
        """True if a scaler that is enabled scales the loss."""
        return isinstance(self.scaler, GradScaler) and self.scaler.is_enabled()

    def gradient(self, grad: Tensor) -> tuple[Tensor, bool]:
        """Return the gradient of the unscaled loss, on CPU, and whether it is finite (True without a scaler).

        Raises:
            ValueError: the loss seems to be scaled, and the scaler is not known.
        """
        grad, finite = self._unscaled(grad)
        return grad, finite is None or bool(finite)

    def _unscaled(self, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.scaler is None:
            self.check()
        if not isinstance(self.scaler, GradScaler) or not self.scaler.is_enabled() or self.scaler._scale is None:
            return grad, None
        grad = grad.float() / self.scaler._scale.to(grad.device)
        finite = torch.isfinite(grad).all().float()
        if self.group is not None:
            dist.all_reduce(finite, dist.ReduceOp.MIN, group=self.group)
        return grad, finite > 0

    def unscaled(self, values: Tensor, overflow: float = 0.0) -> Tensor:
        """Return the values unchanged; their gradient is unscaled in the backward pass, or `overflow` if not finite."""
        if self.scaler is False or not values.requires_grad:
            return values
        return _Unscale.apply(values, self, overflow)  # pyright: ignore[reportReturnType]

    def scaled(self, weights: Tensor | None) -> Tensor | None:
        """Return the weights unchanged; their gradient, which the tables give unscaled, is scaled like all others."""
        if weights is None or not isinstance(self.scaler, GradScaler) or not weights.requires_grad:
            return weights
        return _Scale.apply(weights, self.scaler)  # pyright: ignore[reportReturnType]

    def check(self) -> None:
        """Raise ValueError if the loss seems to be scaled by a scaler that was not given."""
        self.calls += 1
        if self.calls & (self.calls - 1):  # a search takes some hundredths of a second: calls 1, 2, 4, 8, ...
            return
        if _scales():
            gc.collect()  # one that is gone may wait to be collected
            if scales := _scales():
                raise ValueError(
                    f"a GradScaler scales a loss by {scales[0]:g}, and the tables are updated before it can unscale: "
                    f"give it to {self.verb}(..., grad_scaler=scaler), or grad_scaler=False if this model's loss is "
                    "not scaled"
                )


class Unscaled(LossScale):
    """The scale of gradients that `LossScale.unscaled` has unscaled, and set to NaN in a step that overflows."""

    def __init__(self) -> None:
        super().__init__(False)

    def __reduce__(self) -> Any:
        return Unscaled, ()

    def gradient(self, grad: Tensor) -> tuple[Tensor, bool]:
        return grad, bool(torch.isfinite(grad).all())


class _Unscale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: LossScale, overflow: float) -> Tensor:  # pyright: ignore
        ctx.scale, ctx.overflow = scale, overflow
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad, finite = ctx.scale._unscaled(grad)
        # As the scaler leaves out the step of an optimizer.
        return grad if finite is None else torch.where(finite, grad, ctx.overflow), None, None


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, scaler: GradScaler) -> Tensor:  # pyright: ignore
        ctx.scaler = scaler
        return weights.view_as(weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scale = ctx.scaler._scale if ctx.scaler.is_enabled() else None
        return grad if scale is None else grad * scale.to(grad.device), None


def _scales() -> list[float]:
    """The factors by which scalers of this process multiply losses, found by the references to their class."""
    kinds = [GradScaler]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    scalers = [scaler for scaler in gc.get_referrers(*kinds) if isinstance(scaler, GradScaler)]
    used = [scaler.get_scale() for scaler in scalers if scaler.is_enabled() and scaler._scale is not None]
    return [scale for scale in used if scale != 1]
