"""`compress_` on models of other libraries: which are swapped and train, which are refused and why, which go wrong.

    python -m experiments.third_party --json FILE

Libraries that are not installed are left out (pip install torchfm deepctr-torch torch-geometric transformers). Each
model is built small, trains for some steps, is swapped, and trains again; every new parameter must then have moved, but
for those of tables that did not train before the swap either.
"""

import argparse
import functools
import importlib
import json
import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import embcomp

STEPS = 3
Build = Callable[[], tuple[nn.Module, Callable[[nn.Module], Tensor]]]
"""-> a model, and its loss on a batch."""

FIELDS, BATCH, DIM = [90, 120, 150], 16, 8


def _width(model: nn.Module) -> int:
    """A chunk width that all tables are multiples of."""
    return math.gcd(*(part.embedding_dim for part in model.modules() if isinstance(part, nn.Embedding)))


METHODS: dict[str, Callable[[nn.Module], embcomp.Method]] = {
    "HashingTrick": lambda model: embcomp.HashingTrick(rows=20),
    "DoubleHash": lambda model: embcomp.DoubleHash(rows=20),
    "QuotientRemainder": lambda model: embcomp.QuotientRemainder(),
    "UnifiedEmbedding": lambda model: embcomp.UnifiedEmbedding(rows=60, chunk_dim=_width(model)),
}


def torchfm() -> dict[str, Build]:
    """The models of torchfm, with the settings of its example."""
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

    def build(path: str, given: Mapping[str, Any]) -> Any:
        module, _, name = path.partition(".")
        model = getattr(importlib.import_module(f"torchfm.model.{module}"), name)(FIELDS, **given)
        ids = torch.stack([torch.randint(0, size, (BATCH,)) for size in FIELDS], dim=1)
        return model, lambda m: _clicks(m(ids))

    importlib.import_module("torchfm")
    return {path.partition(".")[2]: functools.partial(build, path, given) for path, given in settings.items()}


def deepctr_torch() -> dict[str, Build]:
    """Models of DeepCTR-Torch, with its penalties in the loss."""
    inputs, models = importlib.import_module("deepctr_torch.inputs"), importlib.import_module("deepctr_torch.models")
    names = [
        "WDL", "DeepFM", "xDeepFM", "AFM", "PNN", "NFM", "DCN", "DCNMix", "AutoInt", "CCPM", "FiBiNET", "IFM", "DIFM",
        "AFN", "ONN", "MLR",
    ]  # fmt: skip

    def build(name: str) -> Any:
        features = [inputs.SparseFeat(f"f{i}", size, embedding_dim=DIM) for i, size in enumerate(FIELDS)]
        if name == "MLR":
            model = models.MLR(features, device="cpu")
        elif name == "PNN":
            model = models.PNN(features, device="cpu")
        else:
            model = getattr(models, name)(features, features, device="cpu")
        ids = torch.stack([torch.randint(0, size, (BATCH,)) for size in FIELDS], dim=1).float()
        return model, lambda m: _clicks(m(ids).squeeze(1)) + m.get_regularization_loss().sum()

    return {name: functools.partial(build, name) for name in names}


def torch_geometric() -> dict[str, Build]:
    """LightGCN, which reads the whole table at each step."""
    models = importlib.import_module("torch_geometric.nn.models")

    def build() -> Any:
        model = models.LightGCN(200, DIM, num_layers=2)
        edges = torch.stack([torch.randint(0, 100, (300,)), torch.randint(100, 200, (300,))])
        edges = torch.cat([edges, edges.flip(0)], dim=1)
        pairs = edges[:, :BATCH]
        return model, lambda m: -F.logsigmoid(m(edges, pairs)).mean()

    return {"LightGCN": build}


def transformers() -> dict[str, Build]:
    """Models of transformers whose output layer is tied to the table of tokens."""
    library = importlib.import_module("transformers")
    size = {"vocab_size": 200, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True}
    wide = {**size, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    t5 = {**size, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "GPT2LMHeadModel": ("GPT2Config", {**size, "n_embd": 16, "n_layer": 1, "n_head": 2}),
        "LlamaForCausalLM": ("LlamaConfig", wide),
        "Qwen2ForCausalLM": ("Qwen2Config", {**wide, "num_key_value_heads": 2}),
        "GemmaForCausalLM": ("GemmaConfig", {**wide, "head_dim": 8, "num_key_value_heads": 2}),
        "OPTForCausalLM": ("OPTConfig", {**wide, "ffn_dim": 32, "word_embed_proj_dim": 16}),
        "BertForMaskedLM": ("BertConfig", wide),
        "RobertaForMaskedLM": ("RobertaConfig", wide),
        "DistilBertForMaskedLM": (
            "DistilBertConfig", {**size, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
        ),
        "ElectraForMaskedLM": ("ElectraConfig", {**wide, "embedding_size": 16}),
        "AlbertForMaskedLM": ("AlbertConfig", {**wide, "embedding_size": 16}),
        "T5ForConditionalGeneration": ("T5Config", t5),
        "BartForConditionalGeneration": (
            "BartConfig",
            {**size, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
        ),
    }  # fmt: skip

    def build(name: str) -> Any:
        config, given = kinds[name]
        model = getattr(library, name)(getattr(library, config)(**given))
        ids = torch.randint(3, 200, (4, 6))
        return model, lambda m: m(input_ids=ids, labels=ids).loss

    return {name: functools.partial(build, name) for name in kinds}


LIBRARIES: dict[str, Callable[[], dict[str, Build]]] = {
    "torchfm": torchfm,
    "deepctr_torch": deepctr_torch,
    "torch_geometric": torch_geometric,
    "transformers": transformers,
}


def _clicks(logits: Tensor) -> Tensor:
    """A loss against clicks on every second row, of logits or probabilities [B]."""
    target = (torch.arange(len(logits)) % 2).float()
    return F.mse_loss(logits, target)


def _train(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> list[str]:
    """Some steps; the names of parameters of tables that did not move."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    kinds = (embcomp.nn.table.CompressedTable, nn.Embedding, nn.EmbeddingBag)
    rows = {id(p) for part in model.modules() if isinstance(part, kinds) for p in part.parameters()}
    before = {name: p.detach().clone() for name, p in model.named_parameters() if id(p) in rows}
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss(model)
        if not bool(value.isfinite()):
            raise ArithmeticError(f"the loss is {float(value.detach())}")
        value.backward()
        optimizer.step()
    return [name for name, p in model.named_parameters() if name in before and torch.equal(p, before[name])]


def try_model(build: Build, method: Callable[[nn.Module], embcomp.Method], init: Any) -> tuple[str, str]:
    """("trained", "refused", "wrong" or "does not run" even before the swap; the reason)."""
    torch.manual_seed(0)
    try:
        model, loss = build()
        unused = tuple(name.removesuffix("weight") for name in _train(model, loss))
    except Exception as error:
        return "does not run", f"{type(error).__name__}: {error}"
    try:
        embcomp.compress_(model, {"*": method(model)}, init=init)
    except ValueError as error:
        return "refused", str(error)
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {error}"
    try:
        still = [name for name in _train(model, loss) if not name.startswith(unused)]
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {error}"
    return ("wrong", f"not trained: {still}") if still else ("trained", "")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.third_party", description="compress_ on other libraries"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes there")
    parser.add_argument("--only", choices=list(LIBRARIES), action="append", help="this library (may be repeated)")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    for name in options.only or LIBRARIES:
        try:
            models = LIBRARIES[name]()
        except ImportError as error:
            print(f"{name}: not installed ({error})")
            continue
        outcomes: dict[str, dict[str, list[str]]] = {}
        for model, build in models.items():
            for label, method in METHODS.items():
                for init in ("fresh", "warm"):
                    outcomes.setdefault(model, {})[f"{label}, {init}"] = list(try_model(build, method, init))
        counts = Counter(outcome for tries in outcomes.values() for outcome, _ in tries.values())
        whole = sum(all(outcome == "trained" for outcome, _ in tries.values()) for tries in outcomes.values())
        print(f"{name}: {len(outcomes)} models, {whole} trained in every way; tries: {dict(counts)}")
        for model, tries in outcomes.items():
            for reason in dict.fromkeys(f"{outcome}: {why}" for outcome, why in tries.values() if why):
                print(f"  {model}: {reason[:300]}")
        odd = {m: {t: o for t, o in tries.items() if o[0] != "trained"} for m, tries in outcomes.items()}
        found[name] = {
            "models": len(outcomes), "trained in every way": whole, "tries": dict(counts),
            "others": {model: tries for model, tries in odd.items() if tries},
        }  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
