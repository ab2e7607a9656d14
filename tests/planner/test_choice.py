"""A choice is shown, saved, drawn."""

import json

import pytest
import torch

import embcomp
from embcomp.files import Damaged
from embcomp.formats import grouped

TABLES = [embcomp.Table("user", 3000, 16), embcomp.Table("item", 2000, 16), embcomp.Table("day", 7, 16)]


def choice(**arguments):
    return embcomp.choose(TABLES, "4%", **arguments)


def test_a_saved_choice_is_the_same_and_shares_what_was_shared(tmp_path):
    counts = {"item": torch.arange(2000)}
    options = {
        "item": [embcomp.FrequencyHash(rows=60, counts=counts["item"])],
        "*": [embcomp.UnifiedEmbedding(rows=90, chunk_dim=4)],
    }
    for given in (choice(), choice(options=options)):
        given.save(tmp_path / "choice.json")
        loaded = embcomp.Choice.load(tmp_path / "choice.json")
        assert loaded == given
        assert [[a.method is b.method for b in loaded.tables] for a in loaded.tables] == [
            [a.method is b.method for b in given.tables] for a in given.tables
        ]


def test_a_lost_file_of_tensors_is_named(tmp_path):
    choice(options={"item": [embcomp.FrequencyHash(rows=60, counts=torch.arange(2000))]}).save(tmp_path / "choice.json")
    (tmp_path / "choice.json.safetensors").unlink()
    with pytest.raises(Damaged, match=r"choice\.json\.safetensors beside it is missing"):
        embcomp.Choice.load(tmp_path / "choice.json")


@pytest.mark.parametrize("damage", ["flip", "cut", "other"])
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "choice.json"
    choice().save(path)
    text = path.read_text()
    if damage == "other":
        path.write_text(json.dumps({"a": 1}))
    else:
        path.write_text(text.replace('"budget": ', '"budget": 1') if damage == "flip" else text[: len(text) // 2])
    with pytest.raises(Damaged, match=r"choice\.json"):
        embcomp.Choice.load(path)


def test_the_table_says_what_was_chosen_and_what_more_would_buy():
    given = choice()
    text = str(given)
    assert text.splitlines()[0].startswith("table")
    assert text.splitlines()[0].endswith("with 10 % more")
    assert all(table.name in text for table in given.tables)
    lines = {line.split()[0]: line for line in text.splitlines()[1:]}
    for table in given.tables:
        if isinstance(table.method, embcomp.Full):
            assert table.rows * 4 * 16 == table.full
        assert f" {grouped(table.rows)} " in lines[table.name]
    assert "(served); loss of what the tables are worth" in text


def test_the_curve_falls_and_is_drawn(tmp_path):
    given = choice()
    losses = [point.loss for point in given.curve]
    assert losses == sorted(losses, reverse=True)
    assert [p.nbytes for p in given.curve] == sorted(p.nbytes for p in given.curve)
    given.plot(tmp_path / "curve.svg")
    assert "<svg" in (tmp_path / "curve.svg").read_text()
