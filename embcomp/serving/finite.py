"""The check of the numbers that a served table decodes with: finite ones, and steps above 0."""

from collections.abc import Iterator

from torch import Tensor

from embcomp.holders import Held


def learned(table: Held) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the value of all parameters of a table but its rows, and of the constants of its combiner."""
    for store in table.stores.values():
        if store.codec is not None:
            yield from ((f"codec.{name}", value) for name, value in store.codec.named_parameters())
    if table.plan is not None:
        combiner = table.plan.combiner
        for name, value in (*combiner.named_parameters(), *combiner.named_buffers()):
            yield f"combiner.{name}", value
    if table.padding_vector is not None:
        yield "padding_vector", table.padding_vector


def check_finite(table: str, name: str, value: Tensor) -> None:
    """Raise ValueError if a number of a table is NaN or infinite, or a step is not above 0."""
    remedy = "find out where training went wrong"
    wrong = value[~value.isfinite()]
    if wrong.numel():
        raise ValueError(f"table {table!r}: its {name} is not finite ({float(wrong[0])}); {remedy}")
    if name == "step" and not bool((value > 0).all()):
        raise ValueError(f"table {table!r}: its step is {float(value.min())}, which makes all its values 0; {remedy}")
