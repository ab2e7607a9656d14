"""A saved plan as a method, from which the tables of a saved model are made again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from embcomp import configs
from embcomp.initial_rows import Moments
from embcomp.methods.base import COMBINERS, ENCODERS, Chunk, Method, Plan, Store, Table, TablePlan
from embcomp.methods.maps import SHARED_MAPS

_BLANK = frozenset(vars(nn.Module()))


def _parts(value: Any) -> dict[str, Any]:
    """The parts of a module, or of a plain object: attributes, tensors, submodules."""
    if not isinstance(value, nn.Module):
        return {"attributes": vars(value)}
    return {
        "attributes": {name: item for name, item in vars(value).items() if name not in _BLANK},
        "parameters": dict(value._parameters),
        "buffers": dict(value._buffers),
        "transient": sorted(value._non_persistent_buffers_set),
        "modules": dict(value._modules),
    }


def _make(cls: type, parts: Mapping[str, Any]) -> Any:
    made = object.__new__(cls)
    if isinstance(made, nn.Module):
        nn.Module.__init__(made)
        for name, tensor in parts["parameters"].items():
            made.register_parameter(name, None if tensor is None else nn.Parameter(tensor.clone()))
        for name, tensor in parts["buffers"].items():
            made.register_buffer(name, tensor, persistent=name not in parts["transient"])
        for name, module in parts["modules"].items():
            made.add_module(name, module)
        made.__setstate__({**vars(made), **parts["attributes"]})  # as for a pickle, which may be of an older version
    else:
        vars(made).update(parts["attributes"])
    return made


configs.register("encoder", ENCODERS, _parts, _make)
configs.register("combiner", COMBINERS, _parts, _make)
configs.register("shared_maps", SHARED_MAPS, _parts, _make, one=True)
for _kind in (Table, Chunk, Store, TablePlan, Moments):
    configs.kind(_kind)


@dataclass(frozen=True, kw_only=True, eq=False)
class Planned(Method, registered=False):
    """The method that returns the tables and stores of a saved plan, under the names that they had.

    Args:
        stores: the stores by name.
        tables: the `TablePlan` of each table as `configs.to_json` writes it, by table name.
        tensors: the tensors that the plans refer to.
    """

    shares_store: ClassVar[bool] = True

    stores: Mapping[str, Store]
    tables: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, Tensor] = field(repr=False)

    def plan(self, tables: Sequence[Table], group: str = "shared") -> Plan:
        return Plan(dict(self.stores), list(self._plans(tables)))

    def _plans(self, tables: Sequence[Table]) -> Iterator[TablePlan]:
        read = configs.from_json([self.tables[table.name] for table in tables], self.tensors)
        for table, plan in zip(tables, read, strict=True):
            yield replace(plan, table=table)

    @classmethod
    def for_budget(cls, tables: Any, nbytes: Any, **fixed: Any) -> Self:
        raise NotImplementedError("a plan that was made before has one size")
