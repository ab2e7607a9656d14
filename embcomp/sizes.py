"""The bytes that modules store, and the forms in which users write a number of bytes."""

import math
import re
from collections.abc import Iterator, Sequence
from numbers import Integral, Real

from torch import Tensor, nn

from embcomp.codecs.base import coded_tables

_SIZE = re.compile(r"(\d[\d_]*(?:\.\d+)?|\.\d+)\s*(%|[kmgt]?i?b)", re.IGNORECASE)


def _stored(module: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters and buffers of a module itself, without those of its children."""
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None:
            yield tensor


def nbytes(module: nn.Module) -> int:
    """The bytes of all parameters and buffers of a module in its training form; shared tensors count once.

    Example:
        >>> import torch, embcomp
        >>> embcomp.nbytes(torch.nn.Embedding(1000, 16))
        64000
    """
    seen: set[int] = set()
    total = 0
    for submodule in module.modules():
        for tensor in _stored(submodule):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                total += tensor.nbytes
    return total


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
    total = nbytes(module)
    for weight, codec in coded_tables(module):
        total += codec.served_nbytes - weight.nbytes - nbytes(codec)
    return total


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
    served = {id(weight): codec.served_nbytes for weight, codec in coded_tables(model)}
    for _, codec in coded_tables(model):
        served |= {id(tensor): 0 for tensor in (*codec.parameters(), *codec.buffers())}  # counted with the rows
    seen: set[int] = set()
    rows: list[tuple[str, str, int, int]] = []
    for name, submodule in model.named_modules():
        tensors = [tensor for tensor in _stored(submodule) if id(tensor) not in seen]
        seen |= {id(tensor) for tensor in tensors}
        if tensors:
            training = sum(tensor.nbytes for tensor in tensors)
            own = sum(served.get(id(tensor), tensor.nbytes) for tensor in tensors)
            rows.append((name or "(model)", type(submodule).__name__, training, own))
    rows = sorted((row for row in rows if row[2]), key=lambda row: (-row[3], -row[2]))
    whole = sum(row[3] for row in rows)
    cells = [
        (name, kind, grouped(training), grouped(own), f"{100 * own / max(1, whole):.1f} %")
        for name, kind, training, own in rows
    ]
    total = ("total", "", grouped(sum(row[2] for row in rows)), grouped(whole), "100 %")
    return text_table(("part", "kind", "bytes training", "bytes served", "share"), [*cells, total])


def share_of(size: int, weights: Sequence[int], place: int) -> int:
    """The share of `size` bytes that falls to one of several users, in proportion to weights; shares sum to `size`.

    Example:
        >>> [share_of(10, [1, 1, 1], place) for place in range(3)]
        [3, 3, 4]
    """
    before, whole = sum(weights[:place]), sum(weights)
    return (before + weights[place]) * size // whole - before * size // whole


def grouped(number: int) -> str:
    """Format 1234567 as "1 234 567"."""
    return f"{number:,}".replace(",", " ")


def text_table(header: tuple[str, ...], rows: list[tuple[str, ...]], left: int = 2) -> str:
    """Format rows as a text table with padded columns; the first `left` columns are flush left."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = []
    for line in lines:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def parse_nbytes(text: str | float, full_nbytes: int | None = None) -> int:
    """Convert a budget as users write it to whole bytes, rounded down.

    Args:
        text: a number of bytes; a text such as "50MB" (10^6) or "1.5 GiB" (2^30); or "10%" of `full_nbytes`.
        full_nbytes: the bytes of the full tables; None if that is undefined.

    Raises:
        TypeError: `text` is neither a number nor a text.
        ValueError: the text has another form, is a share while `full_nbytes` is None, or the number is not a size.

    Example:
        >>> from embcomp.sizes import parse_nbytes
        >>> parse_nbytes("50MB"), parse_nbytes("10%", full_nbytes=640_000), parse_nbytes(4096)
        (50000000, 64000, 4096)
    """
    if isinstance(text, str):
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"nbytes={text!r} is not a size: write '10%', '50MB', '1.5GiB', or a number of bytes")
        number, unit = match[1].replace("_", ""), match[2].lower()
        if len(number) > 300:  # beyond a float
            raise ValueError(f"nbytes={text[:20]}... is too large")
        if unit != "%":
            return int(float(number) * (1024 if "i" in unit else 1000) ** "bkmgt".index(unit[0]))
        if full_nbytes is None:
            raise ValueError(
                f"nbytes={text!r} is a share of the full tables, and an open id space (num_embeddings=None) has none: "
                "write a size, such as '50MB'"
            )
        return int(float(number) * full_nbytes / 100)
    if isinstance(text, bool) or not isinstance(text, Real):
        raise TypeError(f"nbytes must be a number of bytes, or a text such as '10%' or '50MB', got {text!r}")
    if not isinstance(text, Integral) and not math.isfinite(text):
        raise ValueError(f"nbytes must be finite, got {text!r}")
    if 0 < text < 1:
        raise ValueError(f"nbytes={text!r} is less than a byte: for a share of the full tables write '{text:.0%}'")
    return int(text)
