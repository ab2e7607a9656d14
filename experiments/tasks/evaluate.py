"""The evaluation of a model on a split."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from data import ClickData
from experiments.config import SliceConfig
from experiments.config.inputs import counts_of
from experiments.errors import InputError
from experiments.processes import distributed
from experiments.tasks.metrics import sliced_metrics


def evaluate(
    model: nn.Module,
    clicks: ClickData,
    split: str,
    batch_size: int,
    *,
    device: torch.device,
    slices: Mapping[str, SliceConfig] | None = None,
    tick: Callable[[int], None] = lambda done: None,
) -> dict[str, float]:
    """Return `<split>/<metric>`, and `<split>/<metric>/<slice>`; boolean columns of the batches are slices, too.

    Args:
        tick: a function that is called with the number of batches done.

    Raises:
        InputError: the split is empty.
    """
    group = clicks.schema.group
    wanted = dict(slices or {})
    counts = {name: counts_of(clicks.folder)[limits.feature] for name, limits in wanted.items()}
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    groups: list[Tensor] = []
    inside: dict[str, list[Tensor]] = {}
    training = model.training
    model.eval()
    try:
        # The look-up of sharded tables is not known to inference mode.
        with torch.inference_mode() if distributed.size() == 1 else torch.no_grad():
            for number, batch in enumerate(clicks.loader(split, batch_size, share=distributed.share()), 1):
                on_device = batch.to(device) if device.type != "cpu" else batch
                rows = slice(len(batch) - batch.padding)
                logits.append(model(on_device.dense, on_device.sparse).float().cpu()[rows])
                labels.append(batch.label[rows])
                if group is not None:
                    groups.append(batch.columns[group][rows])
                for name, limits in wanted.items():
                    seen = counts[name].index_select(0, batch.sparse[limits.feature].values())
                    most = torch.iinfo(torch.int64).max if limits.max_count is None else limits.max_count
                    inside.setdefault(name, []).append(((seen >= limits.min_count) & (seen <= most))[rows])
                for name, column in batch.columns.items():
                    if column.dtype == torch.bool:
                        inside.setdefault(name, []).append(column[rows])
                tick(number)
    finally:
        model.train(training)
    if not logits:
        raise InputError(f"the {split} split of {clicks.name!r} is empty")
    whole = {name: distributed.gathered(torch.cat(parts)) for name, parts in inside.items()}
    columns = [distributed.gathered(torch.cat(parts)) if parts else None for parts in (logits, labels, groups)]
    assert columns[0] is not None
    assert columns[1] is not None
    metrics = sliced_metrics(columns[0], columns[1], columns[2], whole)
    return {f"{split}/{name}": value for name, value in metrics.items()}
