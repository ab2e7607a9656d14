"""The traced program of a model: plain tensors in and out, any batch size and number of ids."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from embcomp.settings import shown

_TORCH = ("aten", "prim", "prims", "quantized", "higher_order")  # operators that torch brings along
_PACKAGES = {"fbgemm": "fbgemm_gpu"}


@dataclass(frozen=True)
class _Jagged:
    """The keys of a KeyedJaggedTensor of the example, in whose place the program takes its tensors."""

    keys: list[str]


class Plain(nn.Module):
    """A model called with plain tensors; each KeyedJaggedTensor is replaced by a tuple.

    The tuple is (values [N], lengths [keys, B]), and weights [N] if the example has them.
    """

    def __init__(self, model: nn.Module, example: Sequence[Any]) -> None:
        super().__init__()
        self.model = model
        self.templates = [_template(value) for value in example]

    def forward(self, *inputs: Any) -> Any:
        given = [_from_plain(value, template) for value, template in zip(inputs, self.templates, strict=True)]
        return to_plain(self.model(*given), "output")


def trace(model: nn.Module, example: Sequence[Any]) -> tuple[ExportedProgram, str]:
    """Return the program of a model, and its inputs as text.

    Args:
        model: the model, in evaluation mode, on the CPU.
        example: the arguments of a call: tensors, KeyedJaggedTensors, None, and tuples, lists and dictionaries of
            these.

    Raises:
        TypeError: an input or an output has another type.
        ValueError: the program would accept only batches of one size.
    """
    if not isinstance(example, tuple | list):
        raise TypeError(f"example must be a tuple of the arguments of a call, such as (ids,), got {shown(example)}")
    wrapped = Plain(model, example)
    plain = tuple(to_plain(value, f"example[{i}]") for i, value in enumerate(example))
    leaves: list[tuple[str, Tensor, int]] = []

    def shape(path: str, tensor: Tensor, axis: int | None) -> dict[int, Any]:
        if axis is None:  # of a plain tensor: the first axis has to vary, the others may
            leaves.append((path, tensor, 0))
            return {i: Dim.AUTO for i, size in enumerate(tensor.shape) if size > 1}  # pyright: ignore
        leaves.append((path, tensor, axis))
        return {axis: Dim.DYNAMIC}  # pyright: ignore

    pairs = enumerate(zip(plain, wrapped.templates, strict=True))
    shapes = tuple(_map(value, template, f"example[{i}]", shape) for i, (value, template) in pairs)
    for path, tensor, axis in leaves:
        if tensor.dim() and tensor.shape[axis] < 2:
            raise ValueError(
                f"{path} has shape {list(tensor.shape)}: give an example with at least two bags and two ids, because "
                "torch.export treats sizes of 0 and 1 as fixed"
            )
    try:
        with torch.no_grad():
            program = torch.export.export(wrapped, plain, dynamic_shapes=(shapes,), strict=False)
    except Exception as error:
        error.add_note("embcomp.export: torch.export cannot trace this model; its tables are not at fault")
        raise
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    sizes = [values[name].shape for name in program.graph_signature.user_inputs if name in values]
    for (path, _, axis), size in zip(leaves, sizes, strict=True):
        if len(size) and str(size[axis]).isdigit():  # a SymInt may stand for a number
            raise ValueError(
                f"{path} would always have to be of size {size[axis]}: the model reads this size as a number, or joins "
                "it with something of a fixed size"
            )
    program.example_inputs = (neutral(plain, wrapped.templates), {})  # ids of users have no place in the file
    for node in _nodes(program):
        for told in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn"):
            node.meta.pop(told, None)  # nor has the source of the model, most of its bytes
    return program, _signature(plain, wrapped.templates, sizes)


def neutral(plain: tuple[Any, ...], templates: list[Any]) -> tuple[Any, ...]:
    """Return inputs of the same types and sizes without information: zeros, with all ids in the first bag."""

    def zeros(path: str, tensor: Tensor, axis: int | None) -> Tensor:
        blank = torch.zeros_like(tensor)
        if path.endswith(".lengths") and axis == 1 and tensor.numel():
            blank.view(-1)[0] = tensor.sum()
        return blank

    pairs = enumerate(zip(plain, templates, strict=True))
    return tuple(_map(value, template, f"example[{i}]", zeros) for i, (value, template) in pairs)


def packages(program: ExportedProgram) -> tuple[str, ...]:
    """Return the packages to import before a program is loaded, torch first."""
    names = {"torch": None}
    for node in _nodes(program):
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in _TORCH:
            names[_PACKAGES.get(node.target.namespace, node.target.namespace)] = None
    return tuple(names)


def _nodes(program: ExportedProgram) -> Iterator[torch.fx.Node]:
    """Yield the nodes of the graph, and of the graphs inside it."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            yield from module.graph.nodes


def to_plain(value: Any, path: str) -> Any:
    """Convert torchrec's types to tensors, in tuples, lists and dictionaries. Raise TypeError for another type."""
    if value is None or isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        return {key: to_plain(item, f"{path}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [to_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    loaded: Any = sys.modules.get("torchrec.sparse.jagged_tensor")
    if loaded is not None and isinstance(value, loaded.KeyedTensor):
        return dict(zip(value.keys(), value.values().split(value.length_per_key(), dim=1), strict=True))
    if loaded is not None and isinstance(value, loaded.JaggedTensor | loaded.KeyedJaggedTensor):
        lengths = value.lengths()
        if isinstance(value, loaded.KeyedJaggedTensor):
            if value.variable_stride_per_key():
                raise TypeError(f"{path}: batches whose size varies between features cannot be exported")
            lengths = lengths.view(len(value.keys()), -1)
        weights = value.weights_or_none()
        return (value.values(), lengths) if weights is None else (value.values(), lengths, weights)
    raise TypeError(
        f"{path} is a {type(value).__name__}: a program takes and gives tensors, KeyedJaggedTensors, and tuples, lists "
        "and dictionaries of them"
    )


def _template(value: Any) -> Any:
    """The same structure, with a `_Jagged` for each KeyedJaggedTensor and None for each tensor."""
    if isinstance(value, dict):
        return {key: _template(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_template(item) for item in value]
    return _Jagged(list(value.keys())) if callable(getattr(value, "keys", None)) else None


def _map(value: Any, template: Any, path: str, leaf: Callable[[str, Tensor, int | None], Any]) -> Any:
    """Call `leaf` for each tensor of a plain structure, with the axis that varies if this is known."""
    if isinstance(template, _Jagged):
        parts = zip(("values", "lengths", "weights"), value, (0, 1, 0), strict=False)
        return tuple(leaf(f"{path}.{name}", tensor, axis) for name, tensor, axis in parts)
    if isinstance(value, dict):
        return {key: _map(item, template[key], f"{path}[{key!r}]", leaf) for key, item in value.items()}
    if isinstance(value, list | tuple):
        pairs = enumerate(zip(value, template, strict=True))
        items = [_map(item, inner, f"{path}[{i}]", leaf) for i, (item, inner) in pairs]
        return items if isinstance(value, list) else tuple(items)
    return None if value is None else leaf(path, value, None)


def _from_plain(value: Any, template: Any) -> Any:
    if isinstance(template, _Jagged):
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor  # the example holds one

        weights = value[2] if len(value) > 2 else None
        return KeyedJaggedTensor(template.keys, value[0], weights=weights, lengths=value[1].reshape(-1))
    if isinstance(value, dict):
        return {key: _from_plain(item, template[key]) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_from_plain(item, inner) for item, inner in zip(value, template, strict=True)]
        return items if isinstance(value, list) else tuple(items)
    return value


def _signature(plain: tuple[Any, ...], templates: list[Any], sizes: list[torch.Size]) -> str:
    """The types and shapes, with a name for each size that varies: float32 [n0, 13], (int64 [n1], int64 [26, n0])."""
    waiting = iter(sizes)
    names: dict[str, str] = {}

    def text(path: str, tensor: Tensor, axis: int | None) -> str:
        shown = [str(size) for size in next(waiting)]
        shape = [size if size.isdigit() else names.setdefault(size, f"n{len(names)}") for size in shown]
        return f"{str(tensor.dtype).removeprefix('torch.')} [{', '.join(shape)}]"

    inputs = [_map(value, template, "", text) for value, template in zip(plain, templates, strict=True)]
    return str(inputs)[1:-1].replace("'", "")
