"""The tests of `compress_` on models of other libraries: which train, which are refused and why, and which go wrong."""
