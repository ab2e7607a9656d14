import re

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import embcomp
from embcomp.formats import grouped, text_table


def test_bytes_of_parameters_and_buffers() -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Embedding(7, 2, dtype=torch.float16))
    linear, norm, embedding = 4 * (15 + 5), 4 * (5 + 5 + 5 + 5) + 8, 2 * 14
    assert embcomp.nbytes(module) == linear + norm + embedding
    assert embcomp.nbytes(nn.ReLU()) == 0


def test_what_is_shared_counts_once() -> None:
    table = nn.Embedding(10, 4)
    model = nn.ModuleDict({"a": table, "again": nn.Sequential(table), "out": nn.Linear(4, 10, bias=False)})
    model["out"].weight = table.weight
    assert embcomp.nbytes(model) == 160
    model.register_buffer("twin", table.weight.detach().clone())
    assert embcomp.nbytes(model) == 320


def test_not_persistent_buffers_and_missing_tensors() -> None:
    module = nn.Linear(3, 5, bias=False)
    module.register_buffer("keys", torch.zeros(4, dtype=torch.int64), persistent=False)
    module.register_buffer("absent", None)
    assert embcomp.nbytes(module) == 60 + 32
    assert embcomp.nbytes(module.to("meta")) == 60 + 32


def test_summary_lists_the_largest_first_and_adds_up() -> None:
    model = nn.ModuleDict({"small": nn.Linear(2, 2), "table": nn.Embedding(1000, 16), "act": nn.ReLU()})
    model["again"] = model["table"]
    embcomp.compress_(model, {"table": embcomp.HashEmbedding(rows=100)})
    lines = [re.split(r"  +", line) for line in embcomp.summary(model).splitlines()]
    assert lines[0] == ["part", "kind", "bytes training", "bytes served", "share"]
    assert [line[0] for line in lines[1:]] == ["table.stores.0", "table.stores.1", "small", "table.encoder", "total"]
    sizes = [int(line[-2].replace(" ", "")) for line in lines[1:]]
    assert [line[-3] for line in lines[1:]] == [line[-2] for line in lines[1:]]  # nothing is coded
    assert sizes == [16_000, 6400, 24, 24, 16_000 + 6400 + 48]
    assert sizes[-1] == embcomp.nbytes(model)
    assert lines[1][-1] == "71.3 %"


def test_summary_of_coded_tables_shows_both_forms() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(1000, 16), "head": nn.Linear(2, 2)})
    embcomp.compress_(model, {"table": embcomp.LowBit(bits=2, step=10)})
    lines = {line[0]: line[-3:-1] for line in (re.split(r"  +", t) for t in embcomp.summary(model).splitlines()[1:])}
    assert lines["table.stores.0"] == ["64 000", "4 400"]
    assert lines["table.stores.0.codec"] == ["400", "0"]
    assert int(lines["total"][0].replace(" ", "")) == embcomp.training_nbytes(model)
    assert int(lines["total"][1].replace(" ", "")) == embcomp.served_nbytes(model)


def test_summary_of_a_module_with_nothing_and_of_a_single_one() -> None:
    assert embcomp.summary(nn.ReLU()).splitlines()[-1].split() == ["total", "0", "0", "100", "%"]
    assert "(model)" in embcomp.summary(nn.Linear(2, 2))


@given(st.integers(0, 10**12))
def test_grouped_digits(number: int) -> None:
    text = grouped(number)
    assert text.replace(" ", "") == str(number)
    assert all(len(part) == 3 for part in text.split(" ")[1:])


def test_text_tables_align() -> None:
    text = text_table(("name", "kind", "n"), [("a", "bb", "1"), ("long", "c", "100")])
    assert text == "name  kind    n\na     bb      1\nlong  c     100"
