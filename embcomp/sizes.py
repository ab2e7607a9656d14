"""The bytes that modules store: in training and when served, in all and part by part."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from embcomp.formats import grouped, parse_nbytes, text_table  # noqa: F401 (which was here once)
from embcomp.holders import check_model, coded_tables


@dataclass(frozen=True)
class _Part:
    """A module of a model with the bytes of its own tensors, without those of its children and of earlier parts."""

    path: str
    kind: str
    training: int
    served: int


def _parts(model: nn.Module) -> Iterator[_Part]:
    """Yield the modules of a model that store something; shared tensors count for the first of them."""
    check_model(model)
    served: dict[int, int] = {}
    for weight, codec in coded_tables(model):
        served |= {id(tensor): 0 for tensor in (*codec.parameters(), *codec.buffers())}  # counted with the rows
        served[id(weight)] = codec.served_nbytes
    seen: set[int] = set()
    for path, module in model.named_modules():
        own = (*module._parameters.values(), *module._buffers.values())
        tensors = [tensor for tensor in own if tensor is not None and id(tensor) not in seen]
        seen |= {id(tensor) for tensor in tensors}
        if tensors:
            yield _Part(
                path or "(model)",
                type(module).__name__,
                sum(tensor.nbytes for tensor in tensors),
                sum(served.get(id(tensor), tensor.nbytes) for tensor in tensors),
            )


def nbytes(module: nn.Module) -> int:
    """The bytes of all parameters and buffers of a module in its training form; shared tensors count once.

    Example:
        >>> import torch, embcomp
        >>> embcomp.nbytes(torch.nn.Embedding(1000, 16))
        64000
    """
    return sum(part.training for part in _parts(module))


def training_nbytes(module: nn.Module) -> int:
    """The bytes of the training form, equal to `nbytes`; the state of an optimizer is not included.

    Example:
        >>> import torch, embcomp
        >>> embcomp.training_nbytes(torch.nn.Embedding(1000, 16))
        64000
    """
    return nbytes(module)


def served_nbytes(module: nn.Module) -> int:
    """The bytes of the served form; rows with a codec count with the bits in which they are served.

    Tables without a codec count as they are, although `embcomp.export` may round them to its `dtype`.

    Example:
        >>> import torch, embcomp
        >>> emb = embcomp.nn.CompressedEmbedding(1000, 16, embcomp.LowBit(bits=2))
        >>> embcomp.nbytes(emb), embcomp.served_nbytes(emb)  # 2 bits for each value, and the step
        (64004, 4004)
    """
    return sum(part.served for part in _parts(module))


def summary(model: nn.Module) -> str:
    """A text table of the parts of a model that store something, largest first, with training and served bytes.

    Example:
        >>> import torch, embcomp
        >>> model = torch.nn.Sequential(torch.nn.Embedding(1000, 16), torch.nn.Linear(16, 1))
        >>> _ = embcomp.compress_(model, {"0": embcomp.LowBit(bits=4)})
        >>> print(embcomp.summary(model))
        part              kind        bytes training  bytes served   share
        0.stores.0        PlainStore          64 000         8 004  99.2 %
        1                 Linear                  68            68   0.8 %
        0.stores.0.codec  GridCodec                4             0   0.0 %
        total                                 64 072         8 072   100 %
    """
    rows = sorted((part for part in _parts(model) if part.training), key=lambda part: (-part.served, -part.training))
    training, served = sum(part.training for part in rows), sum(part.served for part in rows)
    cells = [
        (
            part.path,
            part.kind,
            grouped(part.training),
            grouped(part.served),
            f"{100 * part.served / max(1, served):.1f} %",
        )
        for part in rows
    ]
    total = ("total", "", grouped(training), grouped(served), "100 %")
    return text_table(("part", "kind", "bytes training", "bytes served", "share"), [*cells, total])


def shares_of(size: int, weights: Sequence[int]) -> list[int]:
    """The shares of `size` bytes that fall to several users, in proportion to weights; they sum to `size`.

    Example:
        >>> shares_of(10, [1, 1, 1])
        [3, 3, 4]
    """
    whole = sum(weights)
    bounds = [until * size // whole for until in itertools.accumulate(weights, initial=0)]
    return [after - before for before, after in itertools.pairwise(bounds)]
