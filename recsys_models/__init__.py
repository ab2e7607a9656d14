"""Click-through models on `(dense [B, num_dense], KeyedJaggedTensor) -> logits [B]`.

Each takes its embedding collection as an argument: torchrec's, a compressed or a sharded one.
"""

from recsys_models.behavior import BehaviorModel
from recsys_models.build import MODELS, build
from recsys_models.dcn import DCN
from recsys_models.dcnv2 import DCNv2
from recsys_models.deepfm import DeepFM
from recsys_models.dlrm import DLRM
from recsys_models.wide_deep import WideDeep

__all__ = ["DCN", "DLRM", "MODELS", "BehaviorModel", "DCNv2", "DeepFM", "WideDeep", "build"]
