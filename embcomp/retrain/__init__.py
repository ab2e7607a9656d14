"""Retraining: vectors that stay near those of an earlier training, or are turned back to them."""

from embcomp.retrain.align import Alignment, align_
from embcomp.retrain.anchor import anchor_loss
from embcomp.retrain.compatible import Compatibility, compatible

__all__ = ["Alignment", "Compatibility", "align_", "anchor_loss", "compatible"]
