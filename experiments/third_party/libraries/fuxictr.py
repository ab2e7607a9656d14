"""FuxiCTR: its interaction layers in its base classes, and its models of long histories and of the zoo.

The package contains the models of long histories, but not the models of a checkout's `model_zoo`, whose folder
EMBCOMP_FUXICTR_ZOO names. FuxiCTR's models make their optimizer themselves, before the swap, and select the tables to
penalize by their type.
"""

import functools
import importlib
import importlib.util
import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from experiments.third_party.case import BATCH, DIM, FIELDS, Build, Case, field_ids

LENGTH = 5
_SETTINGS = {
    "optimizer": "adam", "loss": "binary_crossentropy", "metrics": ["AUC"], "verbose": 0, "learning_rate": 0.01,
    "embedding_dim": DIM, "embedding_regularizer": 0.01, "net_regularizer": 0.001, "gpu": -1,
}  # fmt: skip
# Settings of single models that their defaults are too large for.
_SMALL = {
    "num_tasks": 2, "task": ["binary_classification"] * 2, "attention_dim": DIM, "num_heads": 1, "short_seq_len": 3,
    "topk": 2, "parallel_dnn_hidden_units": [16], "stacked_dnn_hidden_units": [16],
}  # fmt: skip


def _layers() -> Any:
    return importlib.import_module("fuxictr.pytorch.layers")


def _feature_map(tasks: int, history: bool) -> Any:
    """Make a feature map: a user, an item and a city; the items clicked before, from the table of the item; clicks."""
    made = importlib.import_module("fuxictr.features").FeatureMap("toy", tempfile.gettempdir())
    sources = ["user", "item", "context"]
    for name, size, source in zip(sources, FIELDS, sources, strict=True):
        made.features[name] = {
            "type": "categorical", "vocab_size": size, "padding_idx": 0, "oov_idx": size - 1, "source": source,
        }  # fmt: skip
    if history:
        made.features["history"] = {
            "type": "sequence", "vocab_size": FIELDS[1], "padding_idx": 0, "max_len": LENGTH, "source": "user",
            "share_embedding": "item", "feature_encoder": "layers.MaskedAveragePooling()",
        }  # fmt: skip
    made.labels = [f"click_{task}" for task in range(tasks)]
    made.num_fields, made.default_emb_dim = made.get_num_fields(), DIM
    made.total_features, made.input_length = sum(FIELDS), len(FIELDS) + LENGTH * history
    made.set_column_index()
    return made


def _batch(tasks: int, history: bool) -> dict[str, Tensor]:
    user, item, city = field_ids().unbind(1)
    past = {"history": torch.randint(0, FIELDS[1], (BATCH, LENGTH))} if history else {}
    labels = {f"click_{task}": (torch.arange(BATCH) + task) % 2 for task in range(tasks)}
    return {"user": user, "item": item, "context": city, **past, **labels}


def _case(kind: Callable[..., Any], tasks: int, batch: Any, history: bool = True) -> Case:
    known = inspect.signature(kind).parameters
    given = {**_SETTINGS, **{name: value for name, value in _SMALL.items() if name in known}}
    with tempfile.TemporaryDirectory() as folder:
        model = kind(_feature_map(tasks, history), model_root=folder, **given)

    def loss(m: Any) -> Tensor:
        return m.compute_loss(m.forward(batch()), m.get_labels(batch()))

    def answer(m: Any) -> Tensor:
        return m.add_loss(m.forward(batch()), m.get_labels(batch()))

    def of_tables(m: Any) -> Tensor:
        of_layers, m._net_regularizer = m._net_regularizer, None
        try:
            return m.regularization_loss()
        finally:
            m._net_regularizer = of_layers

    return Case(model, loss, answer, own_optimizer=True, penalty=of_tables)


def _flat(width: int, fields: int) -> dict[str, Callable[[Any], nn.Module]]:
    """Return the layers of its models of feature interactions: the vectors [B, fields, width] -> [B, *]."""
    layers = _layers()

    def flat(make: Callable[[], nn.Module]) -> Callable[[Any], nn.Module]:
        return lambda feature_map: nn.Sequential(nn.Flatten(), make())

    return {
        "DNN": flat(nn.Identity),
        "DCN": flat(lambda: layers.CrossNet(width * fields, 2)),
        "DCNv2": flat(lambda: layers.CrossNetV2(width * fields, 2)),
        "DCNMix": flat(lambda: layers.CrossNetMix(width * fields, low_rank=4)),
        "xDeepFM": lambda feature_map: layers.CompressedInteractionNet(fields, [4]),
        "PNN": lambda feature_map: layers.InnerProductInteraction(fields, output="inner_product"),
        "FM": lambda feature_map: layers.InnerProductInteraction(fields, output="bi_interaction"),
        "HFM": lambda feature_map: layers.HolographicInteraction(fields),
        "FiBiNET": lambda feature_map: nn.Sequential(
            layers.SqueezeExcitation(fields), layers.BilinearInteractionV2(fields, width)
        ),
        "InterHAt": lambda feature_map: layers.InteractionMachine(width, order=2),
    }


def _interactions(name: str) -> Case:
    layers, models = _layers(), importlib.import_module("fuxictr.pytorch.models")

    class Model(models.BaseModel):
        def __init__(self, feature_map: Any, **settings: Any) -> None:
            super().__init__(feature_map, model_id=name, **settings)
            fields = feature_map.num_fields
            self.embedding_layer = layers.FeatureEmbedding(feature_map, DIM)
            self.linear = layers.LogisticRegression(feature_map)
            self.interaction = _flat(DIM, fields)[name](feature_map)
            wide = self.interaction(torch.zeros(2, fields, DIM)).flatten(1).shape[1]
            self.mlp = layers.MLP_Block(wide, [16], output_dim=1)
            self.compile(settings["optimizer"], settings["loss"], settings["learning_rate"])
            self.reset_parameters()

        def forward(self, inputs: Any) -> dict[str, Tensor]:
            given = self.get_inputs(inputs)
            interactions = self.interaction(self.embedding_layer(given)).flatten(1)
            return {"y_pred": self.output_activation(self.mlp(interactions) + self.linear(given))}

    batch = _batch(1, history=True)
    return _case(Model, 1, lambda: batch)


def _tasks(experts: int) -> Case:
    """Return models of two tasks above one shared bottom, or above experts that each task weighs."""
    layers, models = _layers(), importlib.import_module("fuxictr.pytorch.models")

    class Model(models.MultiTaskModel):
        def __init__(self, feature_map: Any, **settings: Any) -> None:
            super().__init__(feature_map, task=["binary_classification"] * 2, num_tasks=2, **settings)
            wide = DIM * feature_map.num_fields
            self.embedding_layer = layers.FeatureEmbedding(feature_map, DIM)
            self.experts = nn.ModuleList(layers.MLP_Block(wide, [16]) for _ in range(experts))
            self.gates = nn.ModuleList(nn.Linear(wide, experts) for _ in range(2))
            self.towers = nn.ModuleList(layers.MLP_Block(16, [8], output_dim=1) for _ in range(2))
            self.compile(settings["optimizer"], settings["loss"], settings["learning_rate"])
            self.reset_parameters()

        def forward(self, inputs: Any) -> dict[str, Tensor]:
            wide = self.embedding_layer(self.get_inputs(inputs)).flatten(1)
            answers = torch.stack([expert(wide) for expert in self.experts], 1)
            predictions = {}
            for task, (gate, tower) in enumerate(zip(self.gates, self.towers, strict=True)):
                seen = (gate(wide).softmax(1).unsqueeze(2) * answers).sum(1)
                predictions[f"click_{task}_pred"] = self.output_activation[task](tower(seen))
            return predictions

    batch = _batch(2, history=True)
    return _case(Model, 2, lambda: batch)


def _classes(module: ModuleType) -> Iterator[Any]:
    base = importlib.import_module("fuxictr.pytorch.models").BaseModel
    for kind in vars(module).values():
        if inspect.isclass(kind) and issubclass(kind, base) and kind.__module__ == module.__name__:
            yield kind


def _long(kind: Any) -> Case:
    """Return the package's models of long histories: a user, and the items [B x (LENGTH + 1)] with a mask."""
    whole = _batch(1, history=False)
    items = torch.randint(1, FIELDS[1], (BATCH * (LENGTH + 1),))
    mask = torch.ones(BATCH, LENGTH)
    rest = {name: value for name, value in whole.items() if name != "item"}
    return _case(kind, 1, lambda: (dict(rest), {"item": items}, mask), history=False)


def _zoo(file: Path, name: str, tasks: int) -> Case:
    batch = _batch(tasks, history=True)
    return _case(getattr(_load(file), name), tasks, lambda: batch)


def _load(file: Path) -> ModuleType:
    """Import a file of the model zoo, which imports its neighbours."""
    if str(file.parent.parent) not in sys.path:
        sys.path.insert(0, str(file.parent.parent))
    spec = importlib.util.spec_from_file_location("zoo_" + file.stem, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def models() -> dict[str, Build]:
    """Return the models: from its layers, from its package, and from the zoo."""
    multitask = importlib.import_module("fuxictr.pytorch.models").MultiTaskModel
    builds: dict[str, Build] = {
        f"{name} (of its layers)": functools.partial(_interactions, name) for name in _flat(DIM, 4)
    }
    builds["SharedBottom (of its layers)"] = functools.partial(_tasks, 1)
    builds["MMoE (of its layers)"] = functools.partial(_tasks, 3)
    package = importlib.util.find_spec("model_zoo")
    for folder in package.submodule_search_locations or [] if package else []:
        for file in sorted(Path(folder, "LongCTR").glob("*/*.py")):
            for kind in _classes(_load(file)) if file.stem == file.parent.name else []:
                builds[f"{kind.__name__} (LongCTR)"] = functools.partial(_long, kind)
    if zoo := os.environ.get("EMBCOMP_FUXICTR_ZOO"):
        for file in sorted(Path(zoo).glob("**/*.py")):
            text = file.read_text()
            if "LongCTR" in file.parts or "fuxictr.pytorch" not in text or "Model)" not in text:
                continue
            for kind in _classes(_load(file)):
                tasks = 2 if issubclass(kind, multitask) else 1
                builds[f"{kind.__name__} (zoo)"] = functools.partial(_zoo, file, kind.__name__, tasks)
    return builds
