import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrec import KeyedTensor
from torchrec.distributed.types import LazyNoWait

from recsys_models.features import Inputs

DIMS = {"user": 3, "item": 1, "zip": 2, "age": 4}
COLUMNS = {name: torch.randn(5, dim, generator=torch.Generator().manual_seed(dim)) for name, dim in DIMS.items()}


def keyed(names) -> KeyedTensor:
    return KeyedTensor.from_tensor_list(list(names), [COLUMNS[name] for name in names])


@given(st.permutations(list(DIMS)), st.permutations(list(DIMS)), st.integers(1, 4), st.booleans())
def test_features_come_in_the_order_asked_for(given_order, wanted, count, lazy):
    wanted = wanted[:count]
    inputs = Inputs(wanted, DIMS, num_dense=2)
    dense = torch.rand(5, 2)
    # A sharded collection answers with a lazy KeyedTensor.
    embedded = LazyNoWait(keyed(given_order)) if lazy else keyed(given_order)
    dense_out, features = inputs(dense, embedded)
    assert dense_out is dense
    assert torch.equal(features, torch.cat([COLUMNS[name] for name in wanted], dim=1))
    assert inputs.width == features.shape[1]


def test_the_expected_order_costs_no_copy():
    embedded = keyed(DIMS)
    _, features = Inputs(list(DIMS), DIMS, num_dense=0)(torch.zeros(5, 0), embedded)
    assert features is embedded.values()


@pytest.mark.parametrize("dims", [2, [2, 2], (2, 2), {"a": 2, "b": 2, "unused": 9}])
def test_ways_to_give_dims(dims):
    inputs = Inputs(["a", "b"], dims, num_dense=0)
    assert inputs.dims == [2, 2]
    assert inputs.equal_dim("DLRM") == 2


@pytest.mark.parametrize(
    ("names", "dims", "num_dense", "message"),
    [
        ([], 2, 0, "empty"),
        (["a", "b", "a"], 2, 0, "'a' twice"),
        (["a"], 2, -1, "num_dense is -1"),
        (["a", "b"], [2], 0, "1 widths for 2 features"),
        (["a", "b"], {"a": 2}, 0, "no width for feature 'b'"),
        (["a", "b"], [2, 0], 0, "'b' has width 0"),
    ],
)
def test_rejected_when_built(names, dims, num_dense, message):
    with pytest.raises(ValueError, match=message):
        Inputs(names, dims, num_dense)


def test_equal_dim_names_the_model_and_the_feature():
    with pytest.raises(ValueError, match=r"DLRM.*'item' has 1 and 'user' has 3.*DCN"):
        Inputs(["user", "item"], DIMS, num_dense=0).equal_dim("DLRM")


@pytest.mark.parametrize("dense", [torch.zeros(5, 3), torch.zeros(5)])
def test_dense_of_another_shape(dense):
    with pytest.raises(ValueError, match=r"dense has shape .*num_dense=2"):
        Inputs(["user"], 3, num_dense=2)(dense, keyed(["user"]))


def test_missing_feature_is_named():
    with pytest.raises(ValueError, match=r"'zip' is not among .*'user'"):
        Inputs(["user", "zip"], DIMS, num_dense=0)(torch.zeros(5, 0), keyed(["user"]))


def test_feature_of_another_width_is_named():
    with pytest.raises(ValueError, match=r"'user' has width 3.*built for 4"):
        Inputs(["user"], 4, num_dense=0)(torch.zeros(5, 0), keyed(["user"]))
