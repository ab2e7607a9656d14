import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchrec import KeyedTensor

import recsys_models
from recsys_models import MODELS, DCNv2, DeepFM, WideDeep, build

COMMON = {"feature_names": ["a", "b"], "num_dense": 1}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_by_its_name_in_any_spelling(name):
    inputs = COMMON if name != "GMF" else {**COMMON, "num_dense": 0}
    for spelling in (name, name.lower(), name.upper()):
        assert type(build(spelling, nn.Identity(), embedding_dim=4, **inputs)) is MODELS[name]


def test_gmf_is_the_dot_product_of_two_features():
    embedded = KeyedTensor(["user", "item"], [3, 3], torch.randn(5, 6))
    model = build("GMF", lambda sparse: embedded, feature_names=["item", "user"], embedding_dim=3, num_dense=0)
    torch.testing.assert_close(model(torch.zeros(5, 0), None), (embedded["user"] * embedded["item"]).sum(1))
    for wrong in ({"feature_names": ["a", "b", "c"], "num_dense": 0}, {"feature_names": ["a", "b"], "num_dense": 2}):
        with pytest.raises(ValueError, match="GMF is the dot product of two features"):
            build("GMF", nn.Identity(), embedding_dim=3, **wrong)


@pytest.mark.parametrize("name", ["wide_deep", "Wide&Deep", "wide-deep"])
def test_wide_deep_spellings(name):
    assert isinstance(build(name, nn.Identity(), dims=4, **COMMON), WideDeep)


def test_options_and_linear_reach_the_model():
    linear = nn.Identity()
    model = build("DeepFM", nn.Identity(), dims=4, linear=linear, hidden=[7], **COMMON)
    assert isinstance(model, DeepFM)
    assert model.linear is linear
    assert model.deep[0].out_features == 7


@pytest.mark.parametrize(("typo", "meant"), [("deepmf", "DeepFM"), ("dcn_v3", "DCNv2"), ("widedeeep", "WideDeep")])
def test_unknown_model_is_answered_with_the_nearest(typo, meant):
    with pytest.raises(ValueError, match=rf"'{typo}' is unknown.*DLRM, DCN.*did you mean '{meant}'"):
        build(typo, nn.Identity(), dims=4, **COMMON)


def test_a_name_near_nothing_lists_the_models():
    with pytest.raises(ValueError, match=r"WideDeep$"):
        build("xyz", nn.Identity(), dims=4, **COMMON)


def test_unknown_option_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"DCNv2 takes no option 'crosslayer'.*did you mean 'cross_layers'"):
        build("DCNv2", nn.Identity(), dims=4, crosslayer=2, **COMMON)


def test_linear_for_a_model_without_one():
    with pytest.raises(ValueError, match="DLRM takes no option 'linear'"):
        build("DLRM", nn.Identity(), dims=4, linear=nn.Identity(), **COMMON)


@pytest.mark.parametrize("dims", [{}, {"dims": 4, "embedding_dim": 4}])
def test_dims_are_given_once(dims):
    with pytest.raises(ValueError, match="either dims or embedding_dim"):
        build("DCN", nn.Identity(), **dims, **COMMON)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("DCN", {"structure": "parralel"}, "'parralel'.*parallel, stacked"),
        ("DCN", {"cross_layers": 0}, "cross_layers is 0"),
        ("DCNv2", {"experts": 0}, "experts is 0"),
        ("DCNv2", {"experts": 2}, "experts=2 needs low_rank"),
        ("DCNv2", {"low_rank": 0}, "low_rank is 0"),
        ("DLRM", {"dims": {"a": 4, "b": 8}}, "DLRM.*'b' has 8 and 'a' has 4"),
        ("DeepFM", {"dims": [4, 8]}, "DeepFM.*'b' has 8"),
        ("DLRM", {"feature_names": ["a"], "num_dense": 0}, "'a'.*no pair"),
        ("DCN", {"feature_names": "ab"}, r"feature_names is 'ab': give a list, \['ab'\]"),
    ],
)
def test_what_models_reject(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, nn.Identity(), **{"dims": 4, **COMMON, **options})


def test_the_first_arguments_are_the_same_everywhere():
    for model in MODELS.values():
        parameters = list(inspect.signature(model).parameters)
        assert parameters[:4] == ["embeddings", "feature_names", "dims", "num_dense"]
        if model.__name__ != "GMF":
            assert {"hidden", "activation", "dropout", "batch_norm"} < set(parameters)


def test_replication_set_up_of_unified_embedding():
    model = build(
        "DCN", nn.Identity(), dims=30, feature_names=list("abcdef"), num_dense=0, cross_layers=1, hidden=[192]
    )
    assert len(model.cross) == 1
    assert [type(layer) for layer in model.deep] == [nn.Linear, nn.ReLU]
    assert model.deep.out_features == 192
    assert model.output.in_features == 6 * 30 + 192


def test_exports():
    assert set(MODELS) < set(recsys_models.__all__)
    assert MODELS["DCNv2"] is DCNv2


def test_import_needs_torch_alone():
    extras = ("torchrec", "polars", "igraph", "lmdb")
    code = f"import sys, recsys_models; sys.exit(any(name in sys.modules for name in {extras}))"
    root = Path(recsys_models.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
