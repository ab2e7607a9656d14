"""The alignment of a retrained model's tables with those of an earlier training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embcomp.holders import coded_tables
from embcomp.methods.low_rank import Projection
from embcomp.nn.table import CompressedTable
from embcomp.retrain.vectors import rows_of, vectors_of

_SAMPLE = 1000  # ids whose vectors are looked at afterwards


@dataclass(frozen=True)
class Alignment:
    """The result of `align_`.

    Attributes:
        rotation: the orthogonal matrix, float64 [dim, dim], by which the new vectors were multiplied from the right.
        before: the mean cosine of new and old vectors before.
        after: the mean cosine afterwards.
    """

    rotation: Tensor
    before: float
    after: float


@torch.no_grad()
def align_(
    new: nn.Module,
    old: nn.Module | Mapping[str, Any],
    tables: Sequence[str],
    ids: Mapping[str, Tensor] | None = None,
    *,
    products_only: bool = False,
) -> Alignment:
    """Turn the tables of a retrained model towards those of an earlier one, in place, keeping their dot products.

    Tables that meet only in dot products may all be turned by one orthogonal matrix Q without changing the model. The Q
    that minimises sum |e_new(id) Q - e_old(id)|^2 over the common ids is U V^T of the singular value decomposition of
    sum e_new(id)^T e_old(id) (orthogonal Procrustes, Schönemann 1966). An index of the old item vectors then answers
    new queries in part (`docs/retrain.md`). With a warm start or `anchor_loss` this is not needed.

    Args:
        new: the retrained model.
        old: the earlier model, or its tables (or their vectors) by the same names.
        tables: the paths of the tables' modules in `new`: all tables that meet in these products.
        ids: the ids that both trainings saw, int64 [n], by table; by default all ids that both tables have.
        products_only: True to assert that nothing in the model reads single coordinates of these vectors, although it
            has other parameters.

    Returns:
        The rotation and the mean cosines.

    Raises:
        ValueError: the model has other parameters, which may read coordinates; tables differ in width; a table cannot
            be turned exactly (rounded or coded rows, rows narrower than the vectors); or there are no common ids.
        AttributeError: the model does not have a path.

    Example:
        >>> import torch, embcomp
        >>> old = torch.nn.ModuleDict({"user": torch.nn.Embedding(50, 8), "item": torch.nn.Embedding(40, 8)})
        >>> turn = torch.linalg.qr(torch.randn(8, 8)).Q
        >>> new = torch.nn.ModuleDict({name: torch.nn.Embedding.from_pretrained(t.weight.detach() @ turn)
        ...                            for name, t in old.items()})
        >>> done = embcomp.align_(new, old, ["user", "item"])
        >>> torch.allclose(new["item"].weight, old["item"].weight, atol=1e-5), round(done.after, 3)
        (True, 1.0)
    """
    held = {name: new.get_submodule(name) for name in tables}
    if not held:
        raise ValueError("tables is empty: name the tables that the products read")
    if not products_only:
        _check_no_tower(new, held)
    earlier: dict[str, Any] = {n: old.get_submodule(n) if isinstance(old, nn.Module) else old[n] for n in tables}
    common = {name: _common(name, held[name], earlier[name], (ids or {}).get(name)) for name in tables}
    pairs = [(vectors_of(held[n], common[n], n), vectors_of(earlier[n], common[n], n)) for n in tables]
    widths = {vectors.shape[1] for pair in pairs for vectors in pair}
    if len(widths) > 1:
        raise ValueError(
            f"tables {list(tables)} are of the widths {sorted(widths)}: only tables of one width can be rotated"
        )
    left, _, right = torch.linalg.svd(sum(a.double().T @ b.double() for a, b in pairs))  # pyright: ignore
    rotation = left @ right
    for name in tables:
        _check_turnable(name, held[name], new, held)
    for weight in {id(w): w for name in tables for w in _turned(held[name])}.values():
        weight.copy_((weight.double() @ rotation).to(weight))
    after = [(vectors_of(held[n], common[n], n), b) for n, (_, b) in zip(tables, pairs, strict=True)]
    for name, (was, _), (is_now, _) in zip(tables, pairs, after, strict=True):
        expected = (was[:_SAMPLE].double() @ rotation).to(was)
        assert torch.allclose(is_now[:_SAMPLE], expected, atol=1e-3 * float(expected.abs().max() + 1e-9)), name
    return Alignment(rotation, _cosine(pairs), _cosine(after))


def _check_no_tower(model: nn.Module, held: Mapping[str, nn.Module]) -> None:
    inside = {id(parameter) for table in held.values() for parameter in table.parameters()}
    others = [name for name, p in model.named_parameters() if id(p) not in inside and p.shape[-1:] != (1,)]
    if others:
        raise ValueError(
            f"the model has other parameters ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}): a layer "
            "that reads coordinates would read rotated ones. Use anchor_loss or a warm start, or pass "
            "products_only=True if only dot products read these tables"
        )


def _common(name: str, new: Any, old: Any, given: Tensor | None) -> Tensor:
    if given is not None:
        ids = given.reshape(-1)
    else:
        sizes = [size for size in (rows_of(new), rows_of(old)) if size is not None]
        if not sizes:
            raise ValueError(f"table {name!r} has an open id space: give ids[{name!r}], those that both trainings saw")
        ids = torch.arange(min(sizes))
    if not len(ids):
        raise ValueError(f"table {name!r}: no id is common to both trainings")
    return ids


def _check_turnable(name: str, table: nn.Module, model: nn.Module, held: Mapping[str, nn.Module]) -> None:
    """Refuse a table whose vectors are not a linear function of rows of the same width."""
    if not isinstance(table, CompressedTable):
        return
    remedy = "align the full table, then compress_ it with init='warm'"
    if not isinstance(table.combiner, Projection):
        if any(True for _ in coded_tables(table)):
            raise ValueError(f"table {name!r}: its rows are rounded or coded, and cannot be rotated exactly; {remedy}")
        stores: Any = table.stores
        widths = {store.weight.shape[1] for store in stores}
        plain = getattr(table.combiner, "linear", False) and not any(True for _ in table.combiner.parameters())
        if widths != {table.embedding_dim} or not plain:
            raise ValueError(
                f"table {name!r}: its vectors consist of parts, which cannot be rotated together; {remedy}"
            )
    inside = {id(weight) for weight in _turned(table)}
    for path, module in model.named_modules():
        another = isinstance(module, CompressedTable) and all(module is not other for other in held.values())
        if another and any(id(weight) in inside for weight in module.parameters()):
            raise ValueError(f"table {name!r} shares its rows with {path!r}, which is not among {list(held)}")


def _turned(table: Any) -> list[Tensor]:
    """The weights whose rows turn with the vectors."""
    if not isinstance(table, CompressedTable):
        return [table.weight]
    stores: Any = table.stores
    own = [] if table.padding_vector is None else [table.padding_vector.unsqueeze(0)]
    if isinstance(table.combiner, Projection):
        return [table.combiner.matrix, *own]
    return [*(store.weight for store in stores), *own]


def _cosine(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    values = torch.cat([F.cosine_similarity(a.double(), b.double(), dim=1) for a, b in pairs])
    return float(values.mean())
