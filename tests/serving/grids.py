"""What quantisation may cost, from the rows alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from embcomp.methods.base import Combiner, Product, WeightedSum
from embcomp.methods.deep_hash import Network
from embcomp.methods.low_rank import Projection
from embcomp.methods.mixed_dimensions import MappedSum
from embcomp.methods.robe import Blocks
from embcomp.methods.tensor_train import Chain


def steps(rows: Tensor, dtype: str) -> Tensor:
    """Half the scale of each value, [rows, dim], by the documented layout; half a unit in the last place for floats."""
    count, dim = rows.shape
    rows = rows.detach().double()
    if dtype == "float32":
        return torch.zeros_like(rows)
    if dtype == "float16":
        return rows.abs() * 2**-11 + 2**-25
    together = 1
    while 2 * together * dim <= 32 and together < count:
        together *= 2
    out = torch.empty_like(rows)
    for start in range(0, count, together):
        group = rows[start : start + together]
        spread = group.max() - group.min() if together > 1 else group.amax(1) - group.amin(1)
        scale = spread / {"int8": 255, "int4": 15}[dtype]
        if dtype == "int4":  # scale and bias are rounded outwards to float16
            scale = scale * (1 + 2**-9) + group.abs().max() * 2**-10 / 15 + 2**-24
        out[start : start + together] = scale / 2
    return out + rows.abs().max() * 1e-6


def combined(
    combiner: Combiner, chunks: Sequence[Tensor], errors: Sequence[Tensor], handed: Sequence[Tensor] = ()
) -> Tensor:
    """How far a vector may be off when its chunks are off by `errors`."""
    if isinstance(combiner, Network):
        return errors[0]
    if isinstance(combiner, Blocks | Chain):
        sizes = [values.abs() for values in handed]
        largest = combiner([*(chunk.abs() + error for chunk, error in zip(chunks, errors, strict=True)), *sizes])
        return largest - combiner([*(chunk.abs() for chunk in chunks), *sizes])
    if isinstance(combiner, MappedSum):  # its matrices' columns may be negative
        left = iter(matrix.detach().double().abs() for matrix in combiner.matrices)
        return sum(e if e.shape[-1] == combiner.embedding_dim else e @ next(left) for e in errors)
    if isinstance(combiner, Product):
        (a, b), (da, db) = chunks, errors
        return a.abs() * db + b.abs() * da + da * db
    if isinstance(combiner, WeightedSum):
        total = torch.zeros_like(errors[1])
        for j, (vector, error) in enumerate(zip(chunks[1:], errors[1:], strict=True)):
            weight, off = chunks[0][:, j : j + 1].abs(), errors[0][:, j : j + 1]
            total += weight * error + off * vector.abs() + off * error
        return total
    if isinstance(combiner, Projection):
        return combined(combiner.inner, chunks, errors, handed) @ combiner.matrix.detach().abs().to(errors[0].dtype)
    return combiner(list(errors))  # sums and concatenations
