"""The drop-ins for `torch.nn.Embedding` and `torch.nn.EmbeddingBag`."""

import embcomp.nn.holders  # noqa: F401 (registers them)
from embcomp.nn.embedding import CompressedEmbedding
from embcomp.nn.embedding_bag import CompressedEmbeddingBag
from embcomp.nn.memory_linear import MemoryLinear
from embcomp.nn.tied import TiedLinear

__all__ = ["CompressedEmbedding", "CompressedEmbeddingBag", "MemoryLinear", "TiedLinear"]
