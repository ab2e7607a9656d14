"""The settings of ways that come close to a number of bytes from below."""

from typing import Any

from embcomp.retrieval.named import way

_LEAST = 0.75  # of the bytes: a way that leaves more of them unused is not offered


def candidates(rows: int, dim: int, nbytes: float) -> dict[str, dict[str, Any]]:
    """Return the settings of all kinds of ways that take 75 to 100 % of some bytes, by their names in words.

    Args:
        rows: the number of vectors.
        dim: the number of values of a vector.
        nbytes: the bytes that all coded vectors may take.

    Example:
        >>> found = candidates(rows=10_000, dim=64, nbytes=355_000)
        >>> found["bits 4"], "parts 32, codes 256" in found
        ({'bits': 4}, True)
    """
    chosen = {}
    for settings in _settings(rows, dim, nbytes):
        if _LEAST * nbytes < way(**settings).nbytes(rows, dim) <= nbytes:
            chosen[", ".join(f"{name} {value}" for name, value in settings.items())] = settings
    return chosen


def _settings(rows: int, dim: int, nbytes: float) -> list[dict[str, Any]]:
    settings: list[dict[str, Any]] = []
    for name, most in (("signs", 2 * dim), ("row_bits", 8 * dim)):
        fitting = [n for n in range(min(8, most), most) if way(**{name: n}).nbytes(rows, dim) <= nbytes]
        settings += [{name: n} for n in fitting[-1:]]
        settings += [{name: n, "size": "unbiased"} for n in fitting[-1:] if name == "row_bits"]
    settings += [{"bits": bits} for bits in (8, 7, 6, 4, 3, 2, 1)]
    settings += [{"bits": bits, "size": "unbiased"} for bits in (4, 3)]
    settings += [{"levels": levels, "rotation": "itq"} for levels in (1, 2, 3, 4)]
    settings += [{"bits": bits, "rotation": "itq"} for bits in (3, 2)]
    four: dict[str, Any] = {"bits": 4, "rotation": "svd"}
    widths = [width for width in range(2, dim, 2) if way(**four, width=width).nbytes(rows, dim) <= nbytes]
    settings += [{**four, "width": width} for width in widths[-1:]]
    products = [(parts, codes) for parts in (4, 8, 16, 32) if not dim % parts for codes in (256, 16) if codes <= rows]
    settings += [{"parts": parts, "codes": codes} for parts, codes in products]
    return [*settings, {"levels": 3}, {"levels": 1, "rotation": "random"}]
