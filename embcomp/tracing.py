"""The behavior of modules under `torch.fx.symbolic_trace`, which calls them with stand-ins, and `torch.jit.script`."""

import functools
from collections.abc import Callable
from typing import Any

from torch.fx import Proxy
from torch.fx._symbolic_trace import is_fx_symbolic_tracing


class NotScripted:
    """A module that TorchScript cannot compile; it raises at once, and so does a model that holds it."""

    def __prepare_scriptable__(self) -> Any:
        """Raise RuntimeError; `torch.jit.script` calls this on each module that it meets."""
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__} (torch has deprecated it): serve the model with "
            "torch.export or embcomp.export, or use torch.fx.symbolic_trace for a graph"
        )


def one_node(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a module a single node of a traced graph, like torch's own layers, because its work depends on the ids."""

    @functools.wraps(forward)
    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(first, Proxy):
            return forward(self, *args, **kwargs)
        if getattr(first.tracer, "root", None) is self:
            raise ValueError(f"{type(self).__name__} is one node of a graph: trace a module that holds it")
        path = first.tracer.path_of_module(self)  # pyright: ignore[reportAttributeAccessIssue]
        return first.tracer.create_proxy("call_module", path, args, kwargs)

    return recorded


def check_not_a_constant(table: str) -> None:
    """Raise RuntimeError if the vectors of a table would become a constant of a graph, which nothing trains."""
    if not is_fx_symbolic_tracing():
        return
    from torch.fx.experimental.proxy_tensor import get_proxy_mode  # the other tracers record what is done to tensors

    if get_proxy_mode() is None:
        raise RuntimeError(
            f"table {table!r}: torch.fx.symbolic_trace would keep its full weight as a constant; read it in "
            "embcomp.nn.TiedLinear or your own module that the tracer does not enter"
        )
