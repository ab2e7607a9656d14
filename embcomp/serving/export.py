"""`export`: from a trained model to one file that serves it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from embcomp.serving import archive
from embcomp.serving.program import packages, trace
from embcomp.serving.report import ExportReport, table_lines
from embcomp.serving.stores import Dtype
from embcomp.serving.swap import swap


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Sequence[Any],
    *,
    dtype: Dtype | Mapping[str, Dtype] = "int8",
    version: str | None = None,
) -> ExportReport:
    """Write a trained model as a `torch.export` program with quantised tables, which is served without embcomp.

    Tables of every kind are served: those of `embcomp.nn` and `torch.nn`, and compressed and plain collections of
    torchrec, with or without fused optimizers. Their maps and hashes are included. An integer row has its own scale and
    bias (rows narrower than 32 share them with the next rows), and each value is exact to half the scale.

    Load the file with `torch.export.load(path).module()` and call it like the model, with one difference: instead of a
    KeyedJaggedTensor it takes the tuple (values [N], lengths [keys, B]), and weights [N] if the example has them, with
    keys in the order of the example. It returns tensors: a KeyedTensor becomes a dictionary, a JaggedTensor a tuple
    (values, lengths). The batch size and the number of ids may vary, down to 0. The program runs on CPUs.

    Args:
        model: the trained model, in one process; it does not change. It is exported in evaluation mode.
        path: the file to write, "model.pt2"; it is complete or absent.
        example: the arguments of a call, with at least two bags and two ids; only their types and sizes are kept.
        dtype: "int8", "int4", "float16" or "float32"; or one for each table, by glob patterns over module paths and
            torchrec table names: the first match wins, and a table that no pattern matches is not quantised.
        version: a stamp of the model, which `embcomp.serving.version_of` reads and `embcomp.serving.load` compares, so
            that queries of one version never meet an index of another.

    Returns:
        The bytes before and after, table by table; `print` shows them.

    Raises:
        ValueError: the dtype is unknown; a pattern matches no table; tables on one store have different dtypes; the
            dtype cannot hold the values; a number that a table decodes with is not finite, or a step is 0; the model is
            sharded or wrapped; the folder of the path does not exist; the example is too small; or the model fixes its
            sizes.
        TypeError: inputs or outputs are not tensors.
        OSError: the file cannot be written (a full disk, say); the text names it.

    Example:
        >>> import torch, embcomp
        >>> model = torch.nn.Sequential(torch.nn.Embedding(5000, 32), torch.nn.Linear(32, 1))
        >>> report = embcomp.compress_(model, {"0": embcomp.UnifiedEmbedding(rows=900, chunk_dim=16)})
        >>> print(embcomp.export(model, "model.pt2", (torch.arange(4),), dtype="int8"))  # doctest: +ELLIPSIS
        table  method            dtype  rows  bytes full  bytes trained  bytes exported  than trained
        0      UnifiedEmbedding  int8    900     640 000         57 616          18 016          3.2x
        total                                    640 000         57 616          18 016          3.2x
        model.pt2: ... bytes
        import torch; program = torch.export.load('model.pt2').module()
        program(int64 [n0])
        >>> program = torch.export.load("model.pt2").module()
        >>> ids = torch.tensor([0, 7, 4999, 3, 3])
        >>> torch.allclose(program(ids), model(ids), atol=0.02)
        True
    """
    if not (version is None or isinstance(version, str)):
        raise TypeError(f"version must be a string, such as a date, got {type(version).__name__}")
    target = Path(path)
    if target.suffix != ".pt2":
        raise ValueError(f"path {str(target)!r} must end in .pt2, by which torch knows such files")
    if not target.parent.is_dir():
        raise ValueError(f"path {str(target)!r}: there is no folder {str(target.parent)!r}; make it first")
    served = swap(model, dtype)
    program, inputs = trace(served.model, example)
    archive.save(program, target, version)
    return ExportReport(table_lines(served), target, target.stat().st_size, inputs, packages(program))
