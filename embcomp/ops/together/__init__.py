"""The encoding of all features of a kind in one pass over a batch.

Each file has one kind of encoding: a facade, which methods call with a number or a buffer for each part; its form in
plain torch, the reference, in as many operations as for a single feature; and its form in Triton, in one launch
(`embcomp.ops.together.kernels`), which serves on a GPU outside of compiled and traced graphs.
"""
