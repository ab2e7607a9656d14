"""`export`: a trained model -> one file that serves it."""

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
) -> ExportReport:
    """Write a trained model as a `torch.export` program with quantised tables, which is served without embcomp.

    Tables of every kind are served: `embcomp.nn`'s and `torch.nn`'s, compressed and plain collections of torchrec, with
    fused optimizers or without. Their maps and hashes go along. An integer row has a scale and a bias of its own (rows
    narrower than 32 share them with the next ones), and each value comes out within half the scale.

    Load the file with `torch.export.load(path).module()` and call it as the model is called, with one difference: in
    the place of a KeyedJaggedTensor it takes the tuple (values [N], lengths [keys, B]), and weights [N] where the
    example has them; keys in the order of the example. It answers with tensors: a KeyedTensor becomes a dictionary, a
    JaggedTensor a tuple (values, lengths). Batch size and number of ids may vary, down to 0. The program runs on CPUs.

    Args:
        model: trained, in one process; it does not change. It is exported in evaluation mode.
        path: where the file goes, "model.pt2"; it is complete or absent.
        example: the arguments of a call, with at least two bags and two ids; only types and sizes are kept.
        dtype: "int8", "int4", "float16" or "float32"; or one for each table, by glob patterns over module paths and
            torchrec table names: the first match wins, and a table that no pattern matches stays as it is.

    Returns:
        Bytes before and after, table by table; `print` shows them.

    Raises:
        ValueError: an unknown dtype, a pattern without a table, tables on one store with different dtypes; values that
            the dtype cannot hold; a sharded or wrapped model; a path whose folder does not exist; an example too small,
            or a model that fixes its sizes.
        TypeError: inputs or outputs that are not tensors.
        OSError: the file cannot be written (a full disk); names it.

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
    target = Path(path)
    if target.suffix != ".pt2":
        raise ValueError(f"path {str(target)!r} must end in .pt2, by which torch knows such files")
    if not target.parent.is_dir():
        raise ValueError(f"path {str(target)!r}: there is no folder {str(target.parent)!r}; make it first")
    served = swap(model, dtype)
    program, inputs = trace(served.model, example)
    archive.save(program, target)
    return ExportReport(table_lines(served), target, target.stat().st_size, inputs, packages(program))
