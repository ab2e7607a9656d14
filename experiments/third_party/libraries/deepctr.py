"""DeepCTR-Torch: models of its examples, with its penalties, lists of (weight, l2), in the loss."""

import functools
import importlib
from typing import Any
from unittest import mock

from torch import Tensor

from experiments.third_party.case import DIM, FIELDS, Build, Case, clicks, field_ids


def models() -> dict[str, Build]:
    """Return models of DeepCTR-Torch, with its penalties in the loss."""
    with mock.patch("threading.Thread.start"):  # which would ask the package index for a newer version
        importlib.import_module("deepctr_torch")
    inputs, library = importlib.import_module("deepctr_torch.inputs"), importlib.import_module("deepctr_torch.models")
    names = [
        "WDL", "DeepFM", "xDeepFM", "AFM", "PNN", "NFM", "DCN", "DCNMix", "AutoInt", "CCPM", "FiBiNET", "IFM", "DIFM",
        "AFN", "ONN", "MLR",
    ]  # fmt: skip

    def build(name: str) -> Case:
        features = [inputs.SparseFeat(f"f{i}", size, embedding_dim=DIM) for i, size in enumerate(FIELDS)]
        if name == "MLR":
            model = library.MLR(features, device="cpu")
        elif name == "PNN":
            model = library.PNN(features, device="cpu")
        else:
            model = getattr(library, name)(features, features, device="cpu")
        ids = field_ids().float()

        def answer(m: Any) -> Tensor:
            return clicks(m(ids).squeeze(1))

        def loss(m: Any) -> Tensor:
            return answer(m) + m.get_regularization_loss().sum()

        return Case(model, loss, answer)

    return {name: functools.partial(build, name) for name in names}
