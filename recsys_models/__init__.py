"""The models over any embedding modules, compressed or not.

Click-through models: `(dense [B, num_dense], KeyedJaggedTensor) -> logits [B]`. Each takes its embedding collection as
an argument: torchrec's, a compressed or a sharded one.

Retrieval models: `(users [B], items [B, n]) -> scores [B, n]`. Each takes a module for users and one for items:
`nn.Embedding` or `embcomp.nn.CompressedEmbedding`.

Sequence models: `(history [B, L], mask [B, L]) -> queries [B, D]` for the item that comes next. Each takes a module for
items, whose vectors are the output as well.
"""

from recsys_models.behavior import BehaviorModel
from recsys_models.bert4rec import BERT4Rec
from recsys_models.build import (
    MODELS,
    RETRIEVAL_MODELS,
    SEQUENCE_MODELS,
    build,
    build_retrieval,
    build_sequence,
)
from recsys_models.contrastive import multi_positive_loss
from recsys_models.dcn import DCN
from recsys_models.dcnv2 import DCNv2
from recsys_models.deepfm import DeepFM
from recsys_models.dlrm import DLRM
from recsys_models.gmf import GMF
from recsys_models.gru4rec import GRU4Rec
from recsys_models.h2rec import H2Rec
from recsys_models.lightgcn import LightGCN
from recsys_models.losses import bpr_loss, directau_loss, sampled_softmax_loss, softmax_loss
from recsys_models.mf import MF
from recsys_models.neumf import NeuMF
from recsys_models.ngcf import NGCF
from recsys_models.sasrec import SASRec
from recsys_models.wide_deep import WideDeep

__all__ = [
    "DCN",
    "DLRM",
    "GMF",
    "MF",
    "MODELS",
    "NGCF",
    "RETRIEVAL_MODELS",
    "SEQUENCE_MODELS",
    "BERT4Rec",
    "BehaviorModel",
    "DCNv2",
    "DeepFM",
    "GRU4Rec",
    "H2Rec",
    "LightGCN",
    "NeuMF",
    "SASRec",
    "WideDeep",
    "bpr_loss",
    "build",
    "build_retrieval",
    "build_sequence",
    "directau_loss",
    "multi_positive_loss",
    "sampled_softmax_loss",
    "softmax_loss",
]
