"""RecBole: models of each kind (general, sequential, context-aware, knowledge-aware), on atomic files made here.

RecBole 1.2 is written for NumPy 1 and an older SciPy; the names that it needs are added here.
"""

import functools
import importlib
import logging
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from experiments.third_party.case import Build, Case

_USERS, _ITEMS, _CLICKS = 40, 60, 12
_COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
_FEATURES = {"item": ["item_id", "genre", "year"], "user": ["user_id", "age"]}
_LABELED = {"threshold": {"rating": 3}, "train_neg_sample_args": None, "eval_args": {"mode": "labeled"}}
_KINDS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "general": (
        ["BPR", "NeuMF", "LightGCN", "NGCF", "DMF", "MultiVAE", "MultiDAE", "CDAE", "DGCF", "ENMF", "FISM", "GCMC",
         "LINE", "MacridVAE", "NAIS", "NNCF", "SimpleX", "SpectralCF", "RaCT", "DiffRec", "LDiffRec"],
        {"load_col": {"inter": _COLUMNS}},
    ),
    "sequential": (
        ["SASRec", "GRU4Rec", "BERT4Rec", "Caser", "CORE", "FDSA", "FEARec", "FOSSIL", "FPMC", "GCSAN", "GRU4RecCPR",
         "GRU4RecF", "HGN", "HRM", "LightSANs", "NARM", "NextItNet", "NPE", "RepeatNet", "SASRecCPR", "SASRecF",
         "SHAN", "SINE", "SRGNN", "STAMP", "TransRec"],
        {"train_neg_sample_args": None, "load_col": {"inter": _COLUMNS, "item": ["item_id", "genre"]},
         "selected_features": ["genre"], "MAX_ITEM_LIST_LENGTH": 8},
    ),
    "context-aware": (
        ["LR", "FM", "DeepFM", "AFM", "AutoInt", "DCN", "DCNV2", "DSSM", "EulerNet", "FFM", "FiGNN", "FNN", "FwFM",
         "KD_DAGFM", "NFM", "PNN", "WideDeep", "xDeepFM"],
        {**_LABELED, "load_col": {"inter": _COLUMNS, **_FEATURES}},
    ),
    "context-aware and sequential": (
        ["DIN", "DIEN"],
        {"load_col": {"inter": _COLUMNS, **_FEATURES}, "MAX_ITEM_LIST_LENGTH": 8},
    ),
    "knowledge-aware": (
        ["CKE", "CFKG", "KGCN", "KGIN", "KGNNLS", "KTUP", "MCCLK", "MKR", "RippleNet"],
        {"load_col": {"inter": _COLUMNS, "kg": ["head_id", "relation_id", "tail_id"],
                      "link": ["item_id", "entity_id"]}},
    ),
}  # fmt: skip


def _write(folder: Path) -> None:
    """Write the atomic files of a data set `toy`."""
    draw = random.Random(0)

    def table(suffix: str, header: str, rows: Sequence[Sequence[object]]) -> None:
        lines = [header.replace(" ", "\t"), *("\t".join(map(str, row)) for row in rows)]
        (folder / "toy" / f"toy.{suffix}").write_text("\n".join(lines) + "\n")

    (folder / "toy").mkdir()
    clicks = [
        (f"u{u}", f"i{i}", draw.randint(1, 5), time)
        for u in range(_USERS)
        for time, i in enumerate(draw.sample(range(_ITEMS), _CLICKS))
    ]
    table("inter", "user_id:token item_id:token rating:float timestamp:float", clicks)
    table("item", "item_id:token genre:token year:float", [(f"i{i}", f"g{i % 5}", i / 60) for i in range(_ITEMS)])
    table("user", "user_id:token age:token", [(f"u{u}", f"a{u % 4}") for u in range(_USERS)])
    table("link", "item_id:token entity_id:token", [(f"i{i}", f"e{i}") for i in range(_ITEMS)])
    facts = [(f"e{i}", f"r{r}", f"e{(7 * i + 13 * r + 1) % 80}") for i in range(_ITEMS) for r in range(2)]
    table("kg", "head_id:token relation_id:token tail_id:token", facts)


def _give_back() -> None:
    old: dict[str, Any] = {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}
    for name, kind in old.items():
        if name not in np.__dict__:
            setattr(np, name, kind)
    if not hasattr(sparse.dok_matrix, "_update"):
        update: Callable[..., None] = lambda matrix, entries: matrix._dict.update(entries)  # noqa: E731
        sparse.dok_matrix._update = update  # type: ignore[attr-defined]


def models() -> dict[str, Build]:
    """Return all models that run on such data, without those fitted in closed form or in several stages."""
    _give_back()
    config, data, utils = (importlib.import_module(f"recbole.{name}") for name in ("config", "data", "utils"))
    state = importlib.import_module("recbole.utils.enum_type").KGDataLoaderState

    def build(name: str, given: dict[str, Any]) -> Case:
        logging.disable(logging.CRITICAL)
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder))
            settings = {
                "data_path": folder, "checkpoint_dir": folder, "use_gpu": False, "embedding_size": 16,
                "train_batch_size": 64, "show_progress": False, "state": "ERROR", **given,
            }  # fmt: skip
            made = config.Config(model=name, dataset="toy", config_dict=settings)
            dataset = data.create_dataset(made)
            train, *_ = data.data_preparation(made, dataset)
            if "kg" in given["load_col"]:
                train.set_mode(state.RSKG)
            model = utils.get_model(name)(made, getattr(train, "_dataset", dataset))
            batch = next(iter(train))
        logging.disable(logging.NOTSET)

        def loss(m: Any) -> Any:
            losses = m.calculate_loss(batch)
            return sum(part.sum() for part in losses) if isinstance(losses, tuple) else losses.sum()

        # Some of the models that read labels put penalties of parameters into their loss.
        answer = (lambda m: m.predict(batch)) if "threshold" in given else None
        return Case(model, loss, answer)

    return {
        f"{name} ({kind})": functools.partial(build, name, given)
        for kind, (names, given) in _KINDS.items()
        for name in names
    }
