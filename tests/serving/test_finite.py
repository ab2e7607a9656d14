"""No table is exported that decodes with NaN, infinite numbers or steps of 0; the error names table and parameter."""

import math

import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import embcomp
from embcomp import FrequencyBits, LearnedWidths, LowBit, LowRank, Table
from embcomp.nn import CompressedEmbedding
from embcomp.serving.swap import swap
from embcomp.testing.examples import EXAMPLES
from embcomp.torchrec import CompressedEmbeddingBagCollection

IDS, DIM = 30, 8


def model_of(method: embcomp.Method) -> nn.ModuleDict:
    table = CompressedEmbedding(IDS, DIM, method, padding_idx=3)
    table.padding_vector = torch.ones(DIM)
    return nn.ModuleDict({"item": table})


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_every_learned_number_and_constant_but_float_rows_is_checked(example):
    model = model_of(example.make([Table("embedding", IDS, DIM)]))
    swap(model, "float32")
    rows = {id(store.weight) for store in model["item"].stores}
    numbers = {name: value for name, value in model["item"].named_parameters() if id(value) not in rows}
    numbers |= dict(model["item"].combiner.named_buffers(prefix="combiner"))
    for name, value in {**numbers, "padding_vector": model["item"].padding_vector}.items():
        before = value.detach().clone()
        for bad in (math.nan, math.inf, -math.inf):
            with torch.no_grad():
                value.view(-1)[-1] = bad
            with pytest.raises(ValueError, match=r"table 'item': its [\w.]+ (is not finite|is 0\.0)") as told:
                swap(model, "float32")
            shown = name.split("codec.")[-1]
            assert shown in str(told.value) or shown in ("books", "growth", "offset")  # what is served is named
        with torch.no_grad():
            value.copy_(before)
    swap(model, "float32")


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (LowRank(rank=4), "combiner.matrix"),
        (LowBit(bits=4, of=LowRank(rank=4)), "combiner.matrix"),
        (FrequencyBits(counts=torch.arange(IDS), mean_bits=2, groups=3, of=LowRank(rank=4)), "combiner.matrix"),
        (FrequencyBits(counts=torch.arange(IDS), mean_bits=2, groups=3), "codec.logits"),
        (LearnedWidths(width=4), "combiner.matrix"),
    ],
    ids=str,
)
def test_parameters_are_named(method, name):
    model = model_of(method)
    parameter = dict(model["item"].named_parameters())[name.replace("codec", "stores.0.codec")]
    with torch.no_grad():
        parameter.view(-1)[0] = math.nan
    with pytest.raises(ValueError, match=rf"table 'item': its {name} is not finite \(nan\); find out where training"):
        swap(model, "float32")


@pytest.mark.parametrize("growth", [-math.inf, -1e4])
@pytest.mark.parametrize("step", ["table", 7])
def test_a_step_is_above_0(growth, step, tmp_path):
    model = nn.Sequential(CompressedEmbedding(IDS, DIM, LowBit(bits=4, step=step)))
    with torch.no_grad():
        model[0].stores[0].codec.growth[-1] = growth
    with pytest.raises(ValueError, match=r"table '0': its step is 0\.0, which makes all its values 0; find out where"):
        embcomp.export(model, tmp_path / "m.pt2", (torch.arange(4),))
    assert not list(tmp_path.iterdir())


def test_a_step_inside_a_row_is_above_0():
    model = model_of(LowBit(bits=4, step="row"))
    with torch.no_grad():
        model["item"].stores[0].weight[5, DIM:] = -1e4
    with pytest.raises(ValueError, match=r"table 'item': its step is 0\.0"):
        swap(model, "float32")


def test_rows_of_zeros_are_served():
    for step in ("table", "row", 7):
        model = nn.ModuleDict({"item": nn.Embedding(IDS, DIM)})
        with torch.no_grad():
            model["item"].weight[7:14] = 0
        embcomp.compress_(model, LowBit(bits=4, step=step), init="fit")
        torch.testing.assert_close(swap(model, "float32").model["item"](torch.arange(IDS)), model["item"].weight)


def test_float32_keeps_rows_that_are_not_finite():
    model = nn.ModuleDict({"item": CompressedEmbedding(IDS, DIM, embcomp.HashingTrick(rows=9))})
    with torch.no_grad():
        model["item"].stores[0].weight[:, 0] = math.nan
    assert swap(model, "float32").model["item"](torch.arange(IDS))[:, 0].isnan().all()
    with pytest.raises(ValueError, match="table 'item' holds NaN"):
        swap(model, "float16")


def test_tables_of_collections_are_named():
    configs = [
        EmbeddingBagConfig(name=name, num_embeddings=IDS, embedding_dim=DIM, feature_names=[name])
        for name in ("user", "item")
    ]
    model = nn.ModuleList([CompressedEmbeddingBagCollection(configs, {"*": LowRank(rank=4)})])
    batch = KeyedJaggedTensor.from_lengths_sync(["user", "item"], torch.arange(4), torch.ones(4, dtype=torch.int64))
    with torch.no_grad():
        model[0].assemble.combiners[1].matrix[0, 0] = math.inf
    assert not model[0](batch)["item"].isfinite().all()
    with pytest.raises(ValueError, match=r"table '.*item': its combiner\.matrix is not finite \(inf\)"):
        swap(model, "float32")
