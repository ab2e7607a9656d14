"""`compress_` on models of other libraries: which are swapped and train, which are refused and why, which go wrong."""
