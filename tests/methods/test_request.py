"""What `for_budget` may be asked for: tables or a model, bytes or words."""

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import embcomp
from embcomp import HashingTrick, Table
from embcomp.formats import parse_nbytes
from embcomp.methods import METHODS, Method
from embcomp.testing.examples import EXAMPLES

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@given(
    st.integers(0, 10**5), st.integers(0, 99), st.sampled_from([*UNITS, "%"]), st.sampled_from(["", " "]), st.booleans()
)
def test_sizes_as_users_write_them(whole: int, cents: int, unit: str, space: str, lower: bool) -> None:
    text = f"{whole}.{cents:02}{space}{unit.lower() if lower else unit}"
    exact = (whole + Fraction(cents, 100)) * (Fraction(64_000, 100) if unit == "%" else UNITS[unit])
    assert abs(parse_nbytes(text, 64_000) - exact) <= 1 + exact / 10**12


@pytest.mark.parametrize("given", ["50M", "10", "", "-5MB", "1e3MB", "ten %", "5.%", "1,5GB", "10 percent"])
def test_a_text_of_another_form_says_what_to_write(given: str) -> None:
    with pytest.raises(ValueError, match=f"nbytes='{given}' is not a size: write '10%', '50MB'"):
        parse_nbytes(given, 1000)


@pytest.mark.parametrize(("given", "said"), [(0.1, "write '10%'"), (float("nan"), "finite"), (float("inf"), "finite")])
def test_a_number_that_is_no_size(given: float, said: str) -> None:
    with pytest.raises(ValueError, match=f"nbytes.*{said}"):
        parse_nbytes(given, 1000)


@pytest.mark.parametrize("given", [None, True, [100], torch.tensor(100), b"10%"])
def test_what_is_neither_number_nor_text(given: Any) -> None:
    with pytest.raises(TypeError, match=r"nbytes must be a number of bytes, or a text such as '10%' or '50MB'"):
        parse_nbytes(given, 1000)


def test_numbers_of_bytes() -> None:
    assert [parse_nbytes(n) for n in (0, 7, 10**15, 8.9, np.int64(5), np.float32(6))] == [0, 7, 10**15, 8, 5, 6]
    with pytest.raises(ValueError, match=r"'10%' is a share .* open id space .*write a size"):
        parse_nbytes("10%")


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user, self.again = nn.Embedding(600, 8), nn.Linear(8, 1)
        self.item = nn.EmbeddingBag(300, 8)
        self.tables = nn.ModuleList([nn.Embedding(90, 8)])
        self.shared = self.user  # one table, at two places


TABLES = [Table("user", 600, 8), Table("item", 300, 8), Table("tables.0", 90, 8)]
FULL = 990 * 8 * 4


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_every_method_takes_a_model_and_words(example: Any) -> None:
    method: Method = example.make(TABLES)
    cls = type(method)
    sized_by = "rows" if hasattr(method, "of") else cls.sized_by
    fixed = {f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.name != sized_by}
    by_words = cls.for_budget(Tower(), "150%", **fixed)
    by_numbers = cls.for_budget(TABLES, FULL * 3 // 2, **fixed)
    assert by_words.config() == by_numbers.config()
    assert by_words.plan(TABLES).served_nbytes() <= FULL * 3 // 2
    assert cls in METHODS.values()


def test_tables_of_torchrec_are_found() -> None:
    torchrec = pytest.importorskip("torchrec")
    config = torchrec.EmbeddingBagConfig(name="film", embedding_dim=4, num_embeddings=100, feature_names=["film"])
    model = nn.ModuleDict({"ebc": torchrec.EmbeddingBagCollection(tables=[config]), "country": nn.Embedding(50, 4)})
    method = HashingTrick.for_budget(model, "50%")
    assert set(method.rows) == {"film", "country"}
    report = embcomp.compress_(model, method)
    assert 0.9 * 1200 < report.bytes_after <= 1200


@pytest.mark.parametrize("tables", [Table("t", 5, 4), "user", {"user": 600}, [("user", 600, 8)], None])
def test_what_is_neither_tables_nor_a_model(tables: Any) -> None:
    with pytest.raises(TypeError, match=r"tables must be a model, or a sequence of embcomp\.Table"):
        HashingTrick.for_budget(tables, 1000)


def test_a_model_without_tables() -> None:
    with pytest.raises(ValueError, match="no embedding table"):
        HashingTrick.for_budget(nn.Linear(3, 3), 1000)
    with pytest.raises(ValueError, match="open id space"):
        HashingTrick.for_budget([Table("t", None, 4)], "10%")


def test_a_method_alone_is_for_all_tables() -> None:
    model, other = Tower(), Tower()
    method = HashingTrick(rows=50)
    assert embcomp.compress_(model, method) == embcomp.compress_(other, {"*": method})
    assert isinstance(model.shared, embcomp.nn.CompressedEmbedding)


@pytest.mark.parametrize("methods", [HashingTrick, [HashingTrick(rows=5)], "HashingTrick", None])
def test_what_is_no_method_says_what_to_write(methods: Any) -> None:
    with pytest.raises(TypeError, match=r"methods must be .* embcomp\.HashingTrick\(rows=1000\), or a mapping"):
        embcomp.compress_(Tower(), methods)
