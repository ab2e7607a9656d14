"""The arithmetic that must be fast: row hashing, id checks, fused tables. A torch reference stands beside each."""
