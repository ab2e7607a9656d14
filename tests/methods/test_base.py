import dataclasses
import json

import numpy as np
import pytest
import torch

from embcomp import METHODS, HashingTrick, UnifiedEmbedding
from embcomp.graph import ClusterMap
from embcomp.methods.base import Concat, Method, Product, Sum, Table, WeightedSum, plain
from embcomp.nn import CompressedEmbedding
from embcomp.testing.example import Example
from embcomp.testing.examples import EXAMPLES


def test_tables_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="table 't': num_embeddings must be at least 1, got 0"):
        Table("t", 0, 4)
    with pytest.raises(ValueError, match="table 't': embedding_dim must be at least 1, got 0"):
        Table("t", 4, 0)


def test_methods_are_registered_frozen_and_keyword_only() -> None:
    for name, cls in METHODS.items():
        assert cls.__name__ == name
        assert issubclass(cls, Method)
        assert cls.__dataclass_params__.frozen
        placed = {field.name for field in dataclasses.fields(cls) if not field.kw_only}
        assert placed <= ({"codes", "pieces", "rows"} if name == "SemanticIds" else {"clusters"})


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_configurations_are_json(example: Example) -> None:
    table = Table("t", 40, 8)
    config = example.make([table]).config()
    assert json.loads(json.dumps(config)) == config
    assert config["method"] == example.name.partition("-")[0]


def test_plain_values() -> None:
    a, b = torch.arange(6), torch.arange(6).flip(0)
    assert plain(a) == plain(a.clone()) != plain(b)
    assert plain(a.view(2, 3).t()) == plain(a.view(2, 3).t().contiguous())
    assert plain(torch.tensor([])).startswith("tensor [0]")
    assert plain(np.arange(6)) == plain(a)
    assert plain(ClusterMap.of([1, 0], 2))["words"] == plain(ClusterMap.of([1, 0], 2).words)
    value = plain({"n": np.int64(3), "flag": True, 5: [1.5]})
    assert json.dumps(value) == '{"n": 3, "flag": true, "5": [1.5]}'


def test_numpy_seeds_name_the_same_rows() -> None:
    ours, theirs = (CompressedEmbedding(50, 4, HashingTrick(rows=9, seed=s)) for s in (3, np.int64(3)))
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours.materialize(), theirs.materialize())


def test_combiners() -> None:
    a, b, w = torch.randn(3, 5, 4), torch.randn(3, 5, 4), torch.randn(3, 5, 8)
    torch.testing.assert_close(Concat()([a, b]), torch.cat([a, b], -1))
    assert Concat()([a]) is a
    torch.testing.assert_close(Sum()([a, b]), a + b)
    torch.testing.assert_close(Product()([a, b]), a * b)
    torch.testing.assert_close(WeightedSum()([w, a, b]), w[..., 0:1] * a + w[..., 1:2] * b)
    assert (Concat().dim([4, 3]), Sum().dim([4, 4]), Product().dim([4, 4]), WeightedSum().dim([8, 4, 4])) == (
        7,
        4,
        4,
        4,
    )


def test_plans_name_what_they_store() -> None:
    """nbytes of a plan: rows in the bytes of the dtype, buffers as they are."""
    plan = UnifiedEmbedding(rows=10, chunk_dim=4).plan([Table("a", None, 8), Table("b", None, 4)])
    assert plan.nbytes() == 10 * 4 * 4 + 3 * 8
    assert plan.nbytes(float_bytes=2) == 10 * 4 * 2 + 3 * 8


def test_a_state_from_before_a_setting_had_its_default() -> None:
    module = CompressedEmbedding(100, 8, HashingTrick(rows=10))
    state = module.state_dict()
    (name,) = [name for name in state if name.endswith("_extra_state")]
    config = json.loads(bytes(state[name].tolist()))
    del config["balanced"]
    state[name] = torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)
    assert module.load_state_dict(state)
    other = CompressedEmbedding(100, 8, HashingTrick(rows=10, balanced=True))
    with pytest.raises(ValueError, match="balanced: saved False, here True"):
        other.load_state_dict({**other.state_dict(), name: state[name]})
