"""The construction of models by name, for configuration files."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from torch import Tensor, nn

from recsys_models.bert4rec import BERT4Rec
from recsys_models.dcn import DCN
from recsys_models.dcnv2 import DCNv2
from recsys_models.deepfm import DeepFM
from recsys_models.dlrm import DLRM
from recsys_models.features import Dims, Embeddings
from recsys_models.gmf import GMF
from recsys_models.gru4rec import GRU4Rec
from recsys_models.h2rec import H2Rec
from recsys_models.lightgcn import LightGCN
from recsys_models.mf import MF
from recsys_models.neumf import NeuMF
from recsys_models.ngcf import NGCF
from recsys_models.retrieval import Embedding, RetrievalModel
from recsys_models.sasrec import SASRec
from recsys_models.sequence import SequenceModel
from recsys_models.wide_deep import WideDeep

MODELS: dict[str, type[nn.Module]] = {model.__name__: model for model in (DLRM, DCN, DCNv2, DeepFM, GMF, WideDeep)}
RETRIEVAL_MODELS: dict[str, type[RetrievalModel]] = {model.__name__: model for model in (MF, LightGCN, NGCF, NeuMF)}
SEQUENCE_MODELS: dict[str, type[SequenceModel]] = {
    model.__name__: model for model in (GRU4Rec, SASRec, BERT4Rec, H2Rec)
}

_M = TypeVar("_M", bound=nn.Module)


def build(
    name: str,
    embeddings: Embeddings,
    *,
    feature_names: Sequence[str],
    num_dense: int,
    dims: Dims | None = None,
    embedding_dim: int | None = None,
    linear: Embeddings | None = None,
    **options: Any,
) -> nn.Module:
    """Build a model by its name.

    Args:
        name: the name of the model, a key of `MODELS`; case, "_", "-" and "&" are ignored, so "wide_deep" is WideDeep.
        embeddings: the embedding collection, called with the sparse features.
        feature_names: the keys to read from its result.
        num_dense: the number of dense columns, possibly 0.
        dims: the widths of the features: one for all, one each, or a mapping by name.
        embedding_dim: the width of all features, as an alternative to `dims`.
        linear: a second collection, for the models that take one (DeepFM, WideDeep).
        **options: further arguments of the model.

    Raises:
        ValueError: the model or an option is unknown (the text names the nearest known one), neither or both of `dims`
            and `embedding_dim` are given, or the model rejects an argument.

    Example:
        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        >>> table = EmbeddingBagConfig(name="item", feature_names=["item"], num_embeddings=100, embedding_dim=8)
        >>> embeddings = EmbeddingBagCollection(tables=[table])
        >>> model = build("dcnv2", embeddings, feature_names=["item"], embedding_dim=8, num_dense=2, cross_layers=2)
        >>> type(model).__name__
        'DCNv2'
    """
    model = _known(name, MODELS)
    if (dims is None) == (embedding_dim is None):
        raise ValueError(f"give either dims or embedding_dim, not dims={dims!r} and embedding_dim={embedding_dim!r}")
    if linear is not None:
        options["linear"] = linear
    _check_options(model, options, {"self", "embeddings", "feature_names", "dims", "num_dense"})
    widths = dims if dims is not None else embedding_dim
    return model(embeddings, feature_names=feature_names, dims=widths, num_dense=num_dense, **options)


def build_retrieval(
    name: str, users: Embedding, items: Embedding, *, edges: Tensor | None = None, **options: Any
) -> RetrievalModel:
    """Build a retrieval model by its name.

    Args:
        name: the name of the model, a key of `RETRIEVAL_MODELS`; case, "_" and "-" are ignored.
        users: the embedding of the users, a module such as `nn.Embedding` or `embcomp.nn.CompressedEmbedding`.
        items: the embedding of the items, of the same width.
        edges: the pairs of the training split, int64 `[2, E]`, for the models that propagate along them.
        **options: further arguments of the model.

    Raises:
        ValueError: the model or an option is unknown (the text names the nearest known one), a graph model has no
            edges, or the model rejects an argument.

    Example:
        >>> import torch
        >>> users, items = torch.nn.Embedding(100, 16), torch.nn.Embedding(50, 16)
        >>> edges = torch.tensor([[0, 1, 99], [7, 7, 49]])
        >>> build_retrieval("light_gcn", users, items, edges=edges, num_layers=3).num_layers
        3
    """
    model = _known(name, RETRIEVAL_MODELS)
    _check_options(model, options, {"self", "users", "items", "edges"})
    if "edges" in inspect.signature(model.__init__).parameters:
        if edges is None:
            raise ValueError(f"{model.__name__} propagates along the edges of the training split: give edges")
        options["edges"] = edges
    return model(users, items, **options)


def build_sequence(
    name: str,
    items: Embedding,
    *,
    length: int,
    codes: Tensor | None = None,
    codebook_size: int | None = None,
    **options: Any,
) -> SequenceModel:
    """Build a sequence model by its name.

    Args:
        name: the name of the model, a key of `SEQUENCE_MODELS`; case, "_" and "-" are ignored.
        items: the embedding of the items, a module such as `nn.Embedding` or `embcomp.nn.CompressedEmbedding`.
        length: the maximum number of events of a history.
        codes: semantic codes of the items, integers `[num_items, levels]`, for the models that read them.
        codebook_size: codes of a level.
        **options: further arguments of the model.

    Raises:
        ValueError: the model or an option is unknown (the text names the nearest known one), or the model rejects an
            argument.

    Example:
        >>> import torch
        >>> len(build_sequence("sasrec", torch.nn.Embedding(50, 16), length=20, blocks=3).blocks)
        3
    """
    model = _known(name, SEQUENCE_MODELS)
    _check_options(model, options, {"self", "items", "length", "codes", "codebook_size"})
    if reads_codes(model):
        if codes is None:
            raise ValueError(f"{model.__name__} reads semantic codes of the items: give codes")
        options |= {"codes": codes, "codebook_size": codebook_size}
    return model(items, length=length, **options)


def reads_codes(model: type[SequenceModel]) -> bool:
    """Return whether a sequence model takes semantic codes of the items."""
    return "codes" in inspect.signature(model.__init__).parameters


def _known(name: str, models: Mapping[str, type[_M]]) -> type[_M]:
    model = {_plain(known): cls for known, cls in models.items()}.get(_plain(name))
    if model is None:
        raise ValueError(f"model {name!r} is unknown: choose one of {', '.join(models)}{_did_you_mean(name, models)}")
    return model


def _check_options(model: type[nn.Module], options: Iterable[str], common: set[str]) -> None:
    known = [option for option in inspect.signature(model.__init__).parameters if option not in common]
    for option in options:
        if option not in known:
            raise ValueError(
                f"{model.__name__} takes no option {option!r}: its options are {', '.join(known) or 'none'}"
                f"{_did_you_mean(option, known)}"
            )


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _did_you_mean(given: str, known: Iterable[str]) -> str:
    by_plain = {_plain(name): name for name in known}
    close = get_close_matches(_plain(given), by_plain, n=1)
    return f" (did you mean {by_plain[close[0]]!r}?)" if close else ""
