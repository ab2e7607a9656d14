"""Checkpoints of a training, in one process or many, from which it continues exactly. Needs torch alone."""

from embcomp.checkpoints.checkpoints import Checkpoints, Progress
from embcomp.files import Damaged

__all__ = ["Checkpoints", "Damaged", "Progress"]
