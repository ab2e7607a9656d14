"""The choice of a way to code by the arguments of a call."""

from embcomp.retrieval.sign_sums import SignSums
from embcomp.retrieval.ways import Grid, Product, Signs, Spread, Way


def way(
    *,
    bits: int | None = None,
    levels: int | None = None,
    parts: int | None = None,
    codes: int | None = None,
    row_bits: int | None = None,
    signs: int | None = None,
    **settings: object,
) -> Way:
    """Return the way that these arguments of `embcomp.retrieval.compress` name, to ask for its bytes or to fit it.

    Raises:
        ValueError: none or several of bits, levels, parts, row_bits and signs are given, or a value is invalid.
        TypeError: the way does not have a setting.

    Example:
        >>> way(bits=4).nbytes(rows=1000, dim=64)  # codes, a byte and 256 sizes for the rows, a factor for each column
        34280
    """
    given = {"bits": bits, "levels": levels, "parts": parts, "row_bits": row_bits, "signs": signs}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise ValueError(f"give one of bits, levels, parts, row_bits and signs, got {' and '.join(chosen) or 'none'}")
    if codes is not None and parts is None:
        raise ValueError("codes are those of parts: give parts, too")
    if codes is not None:
        settings["codes"] = codes
    kind = {"bits": Grid, "levels": Signs, "parts": Product, "row_bits": Spread, "signs": SignSums}[chosen[0]]
    return kind(**{chosen[0]: given[chosen[0]]}, **settings)  # pyright: ignore[reportArgumentType]
