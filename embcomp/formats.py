"""The forms in which users write a number of bytes, and read numbers and tables."""

import math
import re
from numbers import Integral, Real

_SIZE = re.compile(r"(\d[\d_]*(?:\.\d+)?|\.\d+)\s*(%|[kmgt]?i?b)", re.IGNORECASE)


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
        >>> from embcomp.formats import parse_nbytes
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
