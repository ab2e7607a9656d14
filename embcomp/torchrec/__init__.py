"""The drop-ins for torchrec's collections. Needs torchrec and FBGEMM (extra `torchrec`; docs/index.md, "Install")."""

from embcomp.extras import install

try:
    import torchrec as _torchrec  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"embcomp.torchrec needs torchrec and FBGEMM: {install('torchrec')}, then torchrec and fbgemm-gpu-cpu (or "
        "fbgemm-gpu) with --no-deps"
    ) from error

import embcomp.torchrec.hot_rows
import embcomp.torchrec.optimizer_states
import embcomp.torchrec.serve  # noqa: F401 (these register the kinds of holders and optimizers, and how tables are served)
from embcomp.torchrec.collection.modules import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection
from embcomp.torchrec.fuse import fuse_
from embcomp.torchrec.fused.optimizer import FusedOptimizer, fused_optimizer
from embcomp.torchrec.sharded.shard import shard

__all__ = [
    "CompressedEmbeddingBagCollection",
    "CompressedEmbeddingCollection",
    "FusedOptimizer",
    "fuse_",
    "fused_optimizer",
    "shard",
]
