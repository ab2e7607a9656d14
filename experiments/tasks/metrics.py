"""Exact metrics of clicks, without bins or samples.

AUC is the Mann-Whitney statistic with ties counted half. Grouped AUC is the mean of the groups' AUCs, weighted by their
rows, over the groups that hold both classes (Zhou et al. 2018, arXiv 1706.06978, section 6.2). Normalised entropy is
log-loss over the entropy of the mean label (He et al. 2014).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.errors import Diverged, InputError


def click_metrics(logits: Tensor, labels: Tensor, group: Tensor | None = None) -> dict[str, float]:
    """Return metrics of one set of rows: `auc`, `logloss`, `ne`, and `gauc` if there is a group.

    Args:
        logits: the logits, float [N].
        labels: the labels, float [N], 0 or 1.
        group: the group of each row, int64 [N].

    Returns:
        The metrics by name. AUC and normalised entropy are left out if they are not defined (one class only).

    Raises:
        Diverged: a logit is NaN or infinite.
        InputError: a label is neither 0 nor 1.
    """
    if not bool(torch.isfinite(logits).all()):
        raise Diverged("the model returns NaN or infinite logits; lower the learning rate")
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise InputError("labels must be 0 or 1")
    frame = pl.DataFrame({"score": logits.cpu().numpy(), "label": labels.cpu().numpy() > 0.5})
    metrics: dict[str, float | None] = {"auc": frame.select(_auc()).item()}
    metrics["logloss"] = logloss = F.binary_cross_entropy_with_logits(logits.double(), labels.double()).item()
    rate = labels.double().mean().item()
    if 0 < rate < 1:
        metrics["ne"] = logloss / -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))
    if group is not None:
        groups = frame.with_columns(group=group.cpu().numpy()).group_by("group").agg(_auc().alias("auc"), rows=pl.len())
        known = groups.drop_nulls("auc").sort("group")  # in a fixed order, so that the sum is the same every time
        metrics["gauc"] = known.select((pl.col("auc") * pl.col("rows")).sum() / pl.col("rows").sum()).item()
    return {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}


def sliced_metrics(
    logits: Tensor, labels: Tensor, group: Tensor | None, slices: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return metrics of all rows, and of the rows of each slice (bool [N]) as `<metric>/<slice>`."""
    metrics = click_metrics(logits, labels, group)
    for name, rows in slices.items():
        if bool(rows.any()):
            slice_metrics = click_metrics(logits[rows], labels[rows], None if group is None else group[rows])
            metrics |= {f"{metric}/{name}": value for metric, value in slice_metrics.items()}
        metrics[f"rows/{name}"] = int(rows.sum())
    return metrics


def _auc() -> pl.Expr:
    """Return the AUC; null if there is one class only."""
    label = pl.col("label")
    positives = label.sum().cast(pl.Float64)
    negatives = pl.len().cast(pl.Float64) - positives
    ranks = pl.col("score").rank("average").filter(label).sum()
    wins = ranks - positives * (positives + 1) / 2
    return pl.when((positives > 0) & (negatives > 0)).then(wins / (positives * negatives))
