"""What the report of `compress_` notes: tables that grew, small features whose values became one."""

import re
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import embcomp
from embcomp import CompressionWarning, Full, HashingTrick, Table
from embcomp.notes import FEW, different_vectors
from embcomp.testing.drop_ins import is_coded
from embcomp.testing.examples import EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
@settings(max_examples=5)
@given(ids=st.integers(1, FEW), padded=st.booleans())
def test_vectors_that_differ_are_counted(example: Any, ids: int, padded: bool) -> None:
    """Against the vectors themselves: rows are random, so that equal vectors come from equal rows alone."""
    table = Table("embedding", ids, 8)
    method = example.make([table])
    emb = embcomp.nn.CompressedEmbedding(ids, 8, method, padding_idx=0 if padded else None)
    for weight in emb.parameters():  # importances start as ones
        nn.init.normal_(weight)
    plan = method.plan([table])
    dims = {name: store.dim for name, store in plan.stores.items()}
    before = torch.random.get_rng_state()
    counted = different_vectors(plan.tables[0], dims, emb.padding_idx)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert plan.tables[0].encoder.training
    vectors = emb.eval()(torch.arange(ids)).detach()
    different = len((vectors * 1e4).round().unique(dim=0))
    if example.name == "DeepHash":  # whose network, drawn anew, gives some ids vectors that are almost the same
        assert ids // 2 < counted <= ids
        return
    # Few rows may round to the same vector, and a vector of which nothing is kept is that of the padding.
    if is_coded(emb) or example.name == "Pruned":
        assert counted >= different
        return
    assert counted == different


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gender, self.day, self.item = nn.Embedding(2, 8), nn.Embedding(7, 8), nn.Embedding(5000, 8)


def test_a_report_marks_what_it_warns_of() -> None:
    methods = {"gender": HashingTrick(rows=1), "day": HashingTrick(rows=1000), "*": HashingTrick(rows=500)}
    with pytest.warns(CompressionWarning) as said:
        report = embcomp.compress_(Model(), methods)
    (warning,) = said
    text = "compress_: 'gender': 1 different vector for 2 ids; 'day': larger than before; give small tables"
    assert str(warning.message).startswith(text)
    assert warning.filename == __file__
    assert [table.note for table in report.tables] == ["1 different vector for 2 ids", "larger than before", ""]
    header, gender, day, item, total = str(report).splitlines()
    assert re.search(r"smaller  note$", header)
    assert gender.endswith("1.6x  1 different vector for 2 ids")
    assert day.endswith("0.0x  larger than before")
    assert item.endswith("x")
    assert total.endswith("x")


def test_nothing_is_said_of_what_is_as_it_should_be() -> None:
    """A large table may share rows, and an uncompressed one has its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = embcomp.compress_(Model(), {"gender": Full(), "day": Full(), "*": HashingTrick(rows=50)})
    assert "note" not in str(report)


def test_as_an_error_it_leaves_the_model_alone() -> None:
    model = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompressionWarning)
        with pytest.raises(CompressionWarning, match="'day': larger"):
            embcomp.compress_(model, {"day": HashingTrick(rows=1000)})
    assert type(model.day) is nn.Embedding


def test_many_tables_are_one_warning() -> None:
    model = nn.ModuleDict({f"t{i}": nn.Embedding(3, 4) for i in range(9)})
    with pytest.warns(CompressionWarning, match="'t4': .*; and 4 more tables; give") as said:
        embcomp.compress_(model, HashingTrick(rows=1))
    assert len(said) == 1
    assert "'t5'" not in str(said[0].message)


def test_collections_of_torchrec_too() -> None:
    torchrec = pytest.importorskip("torchrec")
    configs = [
        torchrec.EmbeddingBagConfig(name=name, embedding_dim=8, num_embeddings=ids, feature_names=[name])
        for name, ids in [("gender", 2), ("item", 5000)]
    ]
    model = nn.ModuleDict({"ebc": torchrec.EmbeddingBagCollection(tables=configs)})
    with pytest.warns(CompressionWarning, match="'gender': 1 different vector for 2 ids; give"):
        embcomp.compress_(model, HashingTrick(rows=1))
