"""The sizing of a method to its budget, for the tables of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import embcomp
from embcomp.methods import METHODS, Method, Table
from embcomp.methods.base import FLOAT_BYTES, Plan
from experiments.config import RunConfig
from experiments.config.inputs import Training, provided
from experiments.config.trained import VECTORS, takes_vectors
from experiments.errors import Infeasible, InputError
from experiments.tasks.by_table import ByTable
from experiments.tasks.names import table_name
from experiments.tasks.plans import Plans


@dataclass(frozen=True)
class BuiltModel:
    """A model, and the part of it that holds its tables."""

    model: nn.Module
    embeddings: nn.Module

    @property
    def training_nbytes(self) -> int:
        """The bytes of tables and maps while they train."""
        return embcomp.training_nbytes(self.embeddings)

    @property
    def nbytes(self) -> int:
        """The bytes of tables and maps as they are served."""
        return embcomp.served_nbytes(self.embeddings)


@dataclass(frozen=True)
class Sized:
    """A method at its budget.

    Attributes:
        plans: the plans of the tables: one, or one for each table if the run plans them apart. They hold stores alone
            if the method is made of vectors that are not trained yet.
        kept: the same plans for the models of the run.
    """

    method: Method
    plans: list[Plan]
    kept: Plans

    @property
    def rows(self) -> int:
        """The rows of all stores."""
        return sum(store.rows for plan in self.plans for store in plan.stores.values())


def sized(run: RunConfig, tables: Sequence[Table], training: Training, extra: int = 0, added: int = 0) -> Sized:
    """Return the run's method at its budget, and its plans.

    Args:
        run: the configuration of the run.
        tables: the tables to compress.
        training: the training split as methods see it.
        extra: the bytes of the budget that other tables use, which full tables have, too.
        added: the bytes of the budget that are used for inputs that full tables do not need.

    Raises:
        InputError: the method rejects the options at any budget.
        Infeasible: the method cannot serve this budget.
    """
    shapes = {table.name: (table.num_embeddings or 0, table.embedding_dim) for table in tables}
    # Of vectors that are not trained yet: sizes depend on the shapes alone.
    later = {VECTORS: {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}}
    options = _options(run.method.method, run.method.options, run, training, later)
    if run.method.by_table:
        return _sized_by_table(run, tables, options, training)
    full, known = full_nbytes(tables) + extra, not takes_vectors(run.method)
    apart = [[table] for table in tables] if run.method.apart else [list(tables)]
    return size(run.method.method, tables, options, run.budget, full, extra + added, apart if known else None, run.seed)


def _sized_by_table(run: RunConfig, tables: Sequence[Table], options: dict[str, Any], training: Training) -> Sized:
    """Return the run's methods of single tables, and its method for the others."""
    names = [table.name for table in tables]
    if unknown := [name for name in run.method.by_table if table_name(name) not in names]:
        raise InputError(f"method.by_table: no feature {unknown[0]!r}; the tables are {', '.join(names)}")
    try:
        others = METHODS[run.method.method](**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"{run.method.method} cannot take its options: {error}") from error
    methods = dict.fromkeys(names, others)
    for name, given in run.method.by_table.items():
        settings = {key: value for key, value in given.items() if key != "method"}
        methods[table_name(name)] = _inside(given["method"], settings, run, training, {}, sized=False)
    kept = Plans(method := ByTable(methods=methods))
    try:
        return Sized(method, kept.make([list(tables)], run.seed), kept)
    except ValueError as error:
        raise InputError(str(error)) from error


def _options(
    name: str, given: Mapping[str, Any], run: RunConfig, training: Training, later: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options of a method with its inputs from the training split, and those of a method inside.

    `later` holds stand-ins for fields that are known after full tables are trained.
    """
    given = dict(given)
    inside = given.pop("of", None)
    cls = METHODS[name]
    fields = {field.name for field in dataclasses.fields(cls)}
    seeded = {"seed": run.seed} if "seed" in fields else {}  # other seeds, other collisions
    later_here = {field: value for field, value in later.items() if field in fields}
    options = {**provided(name, given, training), **later_here, **seeded, **given}
    if inside is None:
        return options
    settings = {key: value for key, value in inside.items() if key != "method"}
    sizes_itself = cls.sized_by in fields and cls.sized_by not in options  # and what is inside is given whole
    sized = run.budget is not None and not sizes_itself
    if sized and "of" not in settings and not settings.keys() & fields:
        inner = _options(inside["method"], settings, run, training, later)
        return {**options, "of": METHODS[inside["method"]], **inner}
    return {**options, "of": _inside(inside["method"], settings, run, training, later, sized)}


def _inside(
    name: str, settings: Mapping[str, Any], run: RunConfig, training: Training, later: Mapping[str, Any], sized: bool
) -> Method:
    """Return a method that another wraps; if it is to be `sized`, the budget of the run replaces its rows, or the like.

    Raises:
        InputError: settings of the method are missing or wrong.
    """
    settings, cls = dict(settings), METHODS[name]
    of = settings.pop("of", None)
    options = _options(name, settings, run, training, later)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    own = sized and cls.sized_by in fields and cls.sized_by not in options
    if of is not None:
        inner = {key: of[key] for key in of if key != "method"}
        options["of"] = _inside(of["method"], inner, run, training, later, sized and not own)
    if own and fields[cls.sized_by].default is dataclasses.MISSING:
        options[cls.sized_by] = 1  # which stands for what the budget will choose
    try:
        return cls(**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} cannot take its options: {error}") from error


def size(
    name: str,
    tables: Sequence[Table],
    options: dict[str, Any],
    budget: tuple[str, int | float] | None,
    full: int,
    extra: int,
    groups: Sequence[Sequence[Table]] | None,
    seed: int,
) -> Sized:
    """Return the method at its budget, of which `extra` bytes are already used, and a plan for each group of tables.

    Without `groups`, because the vectors that the method is made of are not known yet, the plan holds stores alone.
    """
    cls = METHODS[name]
    kind, value = budget or (None, 0)
    try:
        if kind is None or kind == "rows":
            method = cls(**options, **({"rows": value} if kind else {}))
        else:
            nbytes = int(value * full if kind == "share" else value) - extra
            method = cls.for_budget(tables, nbytes, **options)
        kept = Plans(method)
        if groups is None:
            return Sized(method, [Plan(dict(method.sizes(tables).stores), [])], kept)
        return Sized(method, kept.make(groups, seed), kept)
    except TypeError as error:
        raise InputError(f"{name} cannot take its options: {error}") from error
    except ValueError as error:
        if kind is None or not _serves_somewhere(cls, tables, options, full):
            raise InputError(str(error)) from error
        raise Infeasible(str(error)) from error


def _serves_somewhere(cls: type[Method], tables: Sequence[Table], options: dict[str, Any], full: int) -> bool:
    """Return whether the method fits with more bytes; if not, the options are wrong, not the budget."""
    try:
        cls.for_budget(tables, 4 * full + 2**20, **options)
    except ValueError:
        return False
    return True


def full_nbytes(tables: Sequence[Table]) -> int:
    return sum((table.num_embeddings or 0) * table.embedding_dim * FLOAT_BYTES for table in tables)
