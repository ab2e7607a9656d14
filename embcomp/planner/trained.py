"""The probes of a trained model, with checks that it is trained, and what a user should know of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from embcomp.files import StrPath
from embcomp.holders import holders
from embcomp.methods.plan import FLOAT_BYTES
from embcomp.planner.losses import calibrated_log_loss, check_labels, log_loss
from embcomp.planner.probes import Loss, Probes, evaluating
from embcomp.planner.tables import Held

LEAST = 0.005
"""The minimum share of a trained model's loss that its tables must account for."""

OVERFITS = 1.05
"""The share of the loss without a model above which a model is taken to overfit; untrained ones are close to 1."""

PROBABILITIES = 32
"""The outputs from which on values in [0, 1] alone are taken for a mistake."""

CALIBRATED = 100
"""The minimum number of rows of a batch (but the last) whose logits are scaled: fewer rows show noise as knowledge."""


def probes_of(
    model: nn.Module,
    held: Sequence[Held],
    batches: list[Any],
    loss: Loss | None,
    counts: Mapping[str, Tensor],
    cache: StrPath | None,
    seconds: float | None,
    heard: Callable[[str], None],
) -> Probes:
    """Make the measurements. Raise ValueError if the model does not seem to be trained."""
    if not batches:
        raise ValueError("data holds no batch: give held-out batches, a list of them or a loader")
    empty = [table.name for table in held if table.weight is not None and table.weight.is_meta]
    if empty:
        raise ValueError(f"tables {empty} are on the meta device, and hold no values to measure")
    entropy = check_labels(batches) if loss is None else None
    sizes = [batch[-1].numel() for batch in batches] if loss is None else []
    probes = Probes(model, held, batches, loss or log_loss, counts, cache, seconds, heard, sizes=sizes)
    overfits = entropy is not None and probes.base > OVERFITS * entropy
    if overfits and all(size >= CALIBRATED for size in sizes[:-1]):  # it may still rank
        left = None if seconds is None else max(0.0, seconds - probes.spent)
        many = [batch for batch, size in zip(batches, sizes, strict=True) if size >= CALIBRATED]
        if many:  # without a last batch of few rows, to which any scale fits
            sizes = [batch[-1].numel() for batch in many]
            probes = Probes(model, held, many, calibrated_log_loss, counts, cache, left, heard, sizes=sizes)
    measured = probes.worth(range(len(held)))
    if measured is None and probes.failed:
        raise ValueError(f"the model cannot be measured with one vector for all ids of a table: {probes.failed[0].why}")
    worth, error = measured or (math.inf, 0.0)
    least = LEAST * abs(probes.base)
    if worth <= max(3 * error, least) or (entropy is not None and probes.base >= entropy - least):
        without = f"{probes.base + worth:.4f} with one vector for all ids of each table" if worth < math.inf else ""
        alone = f"{entropy:.4f} for the share of clicks alone" if entropy is not None else ""
        raise ValueError(
            f"the model is not trained, or overfits: its loss on data is {probes.base:.4f}, and "
            f"{' and '.join(filter(None, [without, alone]))}; train it first, or leave data out"
        )
    return probes


def notes_on_loss(model: nn.Module, probes: Probes) -> list[str]:
    """Return what a user should know of the loss that was measured."""
    if probes.loss is calibrated_log_loss:
        return ["the model overfits: losses are those that are left when its logits are scaled"]
    if probes.loss is not log_loss:
        return []
    *inputs, _ = probes.batches[0]
    with torch.no_grad(), evaluating(model):
        outputs = model(*inputs)
    if outputs.numel() >= PROBABILITIES and bool(((outputs >= 0) & (outputs <= 1)).all()):
        return [
            "all outputs of the model lie in [0, 1], and are taken for logits: if they are probabilities, give loss="
        ]
    return []


def notes_on_bytes(held: Sequence[Held]) -> list[str]:
    """Return what a user should know of the bytes of tables in other precisions than float32."""
    sizes = {table.name: table.weight.element_size() for table in held if table.weight is not None}
    notes = []
    if half := [name for name, size in sizes.items() if size < FLOAT_BYTES]:
        notes.append(f"all bytes are counted in float32, and tables {half[:3]} hold less: they will take less")
    if double := [name for name, size in sizes.items() if size > FLOAT_BYTES]:
        notes.append(
            f"all bytes are counted in float32, and tables {double[:3]} hold more: they will take up to twice the "
            "budget; convert the model with .float() first"
        )
    return notes


def notes_on_compressed(model: object) -> list[str]:
    """Return what a user should know of tables that are compressed already, which a choice leaves out."""
    if not isinstance(model, nn.Module):
        return []
    there = [table for holder in holders(model) if holder.form != "plain" for table in holder.tables.values()]
    if not there:
        return []
    names = [table.names[0] or table.table.name for table in there]
    return [f"tables {names[:3]} are compressed or fused already: they stay as they are, and their bytes do not count"]
