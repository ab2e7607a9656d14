"""torchfm: all models, with the settings of its example."""

import functools
import importlib
from collections.abc import Mapping
from typing import Any

from experiments.third_party.case import DIM, FIELDS, Build, Case, clicks, field_ids


def models() -> dict[str, Build]:
    """Return the models of torchfm, with the settings of its example."""
    mlp = {"mlp_dims": (16,), "dropout": 0.0}
    deep = {"mlp_dims": (16,), "dropouts": (0.0, 0.0)}
    settings: dict[str, dict[str, Any]] = {
        "lr.LogisticRegressionModel": {},
        "fm.FactorizationMachineModel": {"embed_dim": DIM},
        "ffm.FieldAwareFactorizationMachineModel": {"embed_dim": 4},
        "fnn.FactorizationSupportedNeuralNetworkModel": {"embed_dim": DIM, **mlp},
        "wd.WideAndDeepModel": {"embed_dim": DIM, **mlp},
        "pnn.ProductNeuralNetworkModel": {"embed_dim": DIM, **mlp},
        "nfm.NeuralFactorizationMachineModel": {"embed_dim": DIM, **deep},
        "fnfm.FieldAwareNeuralFactorizationMachineModel": {"embed_dim": 4, **deep},
        "dfm.DeepFactorizationMachineModel": {"embed_dim": DIM, **mlp},
        "xdfm.ExtremeDeepFactorizationMachineModel": {"embed_dim": DIM, "cross_layer_sizes": (8,), **mlp},
        "afm.AttentionalFactorizationMachineModel": {"embed_dim": DIM, "attn_size": 8, "dropouts": (0.0, 0.0)},
        "afi.AutomaticFeatureInteractionModel": {
            "embed_dim": DIM, "atten_embed_dim": 8, "num_heads": 2, "num_layers": 1, "mlp_dims": (16,),
            "dropouts": (0.0, 0.0, 0.0),
        },
        "dcn.DeepCrossNetworkModel": {"embed_dim": DIM, "num_layers": 2, **mlp},
        "afn.AdaptiveFactorizationNetwork": {
            "embed_dim": DIM, "LNN_dim": 8, "mlp_dims": (16,), "dropouts": (0.0, 0.0, 0.0),
        },
    }  # fmt: skip

    def build(path: str, given: Mapping[str, Any]) -> Case:
        module, _, name = path.partition(".")
        model = getattr(importlib.import_module(f"torchfm.model.{module}"), name)(FIELDS, **given)
        ids = field_ids()
        return Case(model, lambda m: clicks(m(ids)))

    importlib.import_module("torchfm")
    return {path.partition(".")[2]: functools.partial(build, path, given) for path, given in settings.items()}
