"""The full table of a compressed one as a read-only tensor: reading gives ordinary tensors, writing raises."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter

from embcomp.ops.hashing import is_recorded


class ComputedWeight(Tensor):
    """A tensor that was computed at its access. A write to it would be lost, and therefore raises.

    Reading gives ordinary tensors and gradients. Tensors that share its memory (views, `.data`, `.detach()`) are
    read-only, too.

    Attributes:
        table: the name of the table, for messages.
        trained: True if the rows require a gradient, as the weight of an uncompressed table would; None for tensors
            derived from a weight.
    """

    table: str
    trained: bool | None

    @classmethod
    def of(cls, vectors: Tensor, table: str, trained: bool | None = None) -> Tensor:
        """Make the vectors read-only; return them unchanged if operations are recorded rather than done."""
        if is_recorded(vectors):
            return vectors
        weight = vectors.as_subclass(cls)
        weight.table, weight.trained = table, trained
        return weight

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {} if kwargs is None else kwargs
        closed = [item for item in tree_iter((args, given)) if isinstance(item, ComputedWeight)]
        with torch._C.DisableTorchFunctionSubclass():
            versions = [_version(item) for item in closed]
            if _sets(func, args):
                raise _written(closed[0], func)
            result = func(*args, **given)
            for item, version in zip(closed, versions, strict=True):
                if _version(item) != version:
                    raise _written(item, func)
            return _closed(result, closed)

    def set_(self, *args: Any, **kwargs: Any) -> Any:  # the one method that torch does not pass through the above
        raise _written(self, Tensor.set_)

    def __reduce_ex__(self, protocol: Any) -> Any:
        with torch._C.DisableTorchFunctionSubclass():  # files hold an ordinary tensor
            return self.as_subclass(Tensor).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor).__deepcopy__(memo)


def _version(tensor: Tensor) -> int:
    """The number of writes to the tensor; 0 for tensors made in inference mode, which do not count writes."""
    return 0 if tensor.is_inference() else tensor._version


def _name(func: Any) -> str:
    """The name of a method, a function, or the attribute that a descriptor sets."""
    name = getattr(func, "__name__", str(func))
    return f"{func.__self__.__name__} = ..." if name == "__set__" else name


def _sets(func: Any, args: Sequence[Any]) -> bool:
    """Return whether the call sets an attribute or exchanges the memory, which the version does not show."""
    name = _name(func)
    if name in ("data = ...", "grad = ..."):
        return isinstance(args[0], ComputedWeight)
    if name in ("requires_grad_", "requires_grad = ..."):
        wanted = args[1] if len(args) > 1 else True
        return isinstance(args[0], ComputedWeight) and args[0].trained not in (None, wanted)
    return False


def _closed(result: Any, sources: Sequence[ComputedWeight]) -> Any:
    """Make the result read-only if it shares the memory of a read-only tensor."""
    if type(result).__name__ == "ndarray":
        result.flags.writeable = False
        return result
    if type(result) in (list, tuple):
        return type(result)(_closed(item, sources) for item in result)
    if not isinstance(result, Tensor) or isinstance(result, ComputedWeight):
        return result
    source = next((item for item in sources if torch._C._is_alias_of(result, item)), None)  # pyright: ignore
    return result if source is None else ComputedWeight.of(result, source.table)


def _written(weight: ComputedWeight, func: Any) -> RuntimeError:
    return RuntimeError(
        f"table {weight.table!r} is compressed: its weight is computed from its rows at each access, and what "
        f"{_name(func)!r} writes would be lost. Set the weight before compress_ (init='warm' keeps it), draw rows anew "
        "by reset_parameters(), freeze by requires_grad_() of the module, or write to weight.clone()"
    )
