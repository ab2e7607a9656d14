"""docs/hashing.md in Python integers: what every implementation is measured against."""

import hashlib

MASK = 2**64 - 1


def key(seed: int, table: str, chunk: int) -> int:
    text = "/".join(["embcomp", "1", str(seed), str(chunk), table])
    return sum(byte << 8 * i for i, byte in enumerate(hashlib.sha256(text.encode("utf-8")).digest()[:8]))


def row(id: int, seed: int, table: str, chunk: int, rows: int) -> int:
    z = id % 2**64 ^ key(seed, table, chunk)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ z >> shift) * factor & MASK
    return ((z ^ z >> 31) >> 32) * rows >> 32


def balanced_row(id: int, seed: int, table: str, chunk: int, num_ids: int, rows: int) -> int:
    digest = hashlib.sha512("/".join(["embcomp", "1", str(seed), str(chunk), table]).encode("utf-8")).digest()
    words = [sum(byte << 8 * i for i, byte in enumerate(digest[start : start + 8])) for start in range(0, 64, 8)]
    low_size = 2 ** ((num_ids - 1).bit_length() // 2)
    high_size = max((num_ids + low_size - 1) // low_size, rows // low_size)
    high, low = divmod(id, low_size)
    for a, b, c, d in (words[:4], words[4:]):
        low ^= (high * a + b) % 2**64 // 2**32 * low_size // 2**32
        high = (high + (low * c + d) % 2**64 // 2**32 * high_size // 2**32) % high_size
    places = high_size * low_size
    if places <= rows:
        return high * low_size + low
    shift = 62 - rows.bit_length()
    return (high * low_size + low) * (rows * 2**shift // places) // 2**shift
