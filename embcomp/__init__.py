"""embcomp: small embedding tables for recommender models."""

from embcomp.collector import paused

with paused():  # it would walk all that torch has made, which lives as long as the process
    import embcomp.averaging
    import embcomp.compress.remapping  # (`embcomp.graph.remap_` knows modules by it)
    import embcomp.moved  # noqa: F401
    from embcomp import configs, nn
    from embcomp.align import align_dot_product_
    from embcomp.compress import CompressionReport, TableReport, compress_
    from embcomp.methods import (
        METHODS,
        ROBE,
        BitCipher,
        ClusteredHash,
        Dedup,
        DeepHash,
        DoubleGraphHash,
        DoubleHash,
        FrequencyBits,
        FrequencyHash,
        Full,
        GraphHash,
        HashEmbedding,
        HashingTrick,
        HotRows,
        LearnedMask,
        LearnedWidths,
        LowBit,
        LowRank,
        LSHash,
        Method,
        MixedDimensions,
        MultiHash,
        Nested,
        ProductCodes,
        Pruned,
        QuotientRemainder,
        SemanticIds,
        SoftGraphHash,
        Table,
        TensorTrain,
        UnifiedEmbedding,
    )
    from embcomp.notes import CompressionWarning
    from embcomp.planner import Choice, choose
    from embcomp.planner.features import rank_features
    from embcomp.retrain import align_, anchor_loss, compatible
    from embcomp.saving import load, save
    from embcomp.schedule import Schedule
    from embcomp.schedule.hot_tracker import HotTracker
    from embcomp.schedule.reclustering import recluster_
    from embcomp.semantic_ids.pieces.base import Ngram, PrefixNgram, Unigram
    from embcomp.semantic_ids.pieces.sentence_pieces import SentencePieces
    from embcomp.serving import ExportReport, TableExport, export
    from embcomp.sizes import nbytes, served_nbytes, summary, training_nbytes
    from embcomp.widths import at_width, nested_loss, truncate_

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "ROBE",
    "BitCipher",
    "Choice",
    "ClusteredHash",
    "CompressionReport",
    "CompressionWarning",
    "Dedup",
    "DeepHash",
    "DoubleGraphHash",
    "DoubleHash",
    "ExportReport",
    "FrequencyBits",
    "FrequencyHash",
    "Full",
    "GraphHash",
    "HashEmbedding",
    "HashingTrick",
    "HotRows",
    "HotTracker",
    "LSHash",
    "LearnedMask",
    "LearnedWidths",
    "LowBit",
    "LowRank",
    "Method",
    "MixedDimensions",
    "MultiHash",
    "Nested",
    "Ngram",
    "PrefixNgram",
    "ProductCodes",
    "Pruned",
    "QuotientRemainder",
    "Schedule",
    "SemanticIds",
    "SentencePieces",
    "SoftGraphHash",
    "Table",
    "TableExport",
    "TableReport",
    "TensorTrain",
    "UnifiedEmbedding",
    "Unigram",
    "align_",
    "align_dot_product_",
    "anchor_loss",
    "at_width",
    "choose",
    "compatible",
    "compress_",
    "configs",
    "export",
    "load",
    "nbytes",
    "nested_loss",
    "nn",
    "rank_features",
    "recluster_",
    "save",
    "served_nbytes",
    "summary",
    "training_nbytes",
    "truncate_",
]
