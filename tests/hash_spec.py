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
