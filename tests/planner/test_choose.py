"""Choices: within the budget, as `compress_` counts it."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

import embcomp
from embcomp.planner.choice import kind
from embcomp.planner.losses import log_loss
from tests.planner.conftest import IDS, WIDTH, Clicks, chosen

FULL = 4 * WIDTH * sum(IDS.values())


@settings(max_examples=15, deadline=None)
@given(st.floats(0.02, 1.2), st.sampled_from(["served", "training"]))
def test_a_choice_keeps_to_its_budget_and_counts_as_compress_does(share, count):
    model = Clicks()
    choice = embcomp.choose(model, int(share * FULL), count=count)
    report = embcomp.compress_(model, choice.methods)
    kept = sum(t.served for t in choice.tables if isinstance(t.method, embcomp.Full))
    assert report.served_nbytes + kept == choice.served_nbytes
    assert report.training_nbytes + kept == choice.training_nbytes
    assert choice.nbytes <= choice.budget == int(share * FULL)


def test_more_bytes_never_cost_more():
    losses = [embcomp.choose(Clicks(), share).loss for share in ("3%", "5%", "10%", "20%", "50%", "100%")]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0.0


def test_full_tables_are_chosen_where_they_fit():
    assert {kind(t.method) for t in embcomp.choose(Clicks(), "100%").tables} == {"Full"}


def test_tables_that_share_a_store_are_one_option():
    shared = embcomp.UnifiedEmbedding(rows=300, chunk_dim=4)
    choice = embcomp.choose(Clicks(), "30%", options=[shared, embcomp.Full()], keep="tables.day")
    methods = {t.name: t.method for t in choice.tables}
    assert isinstance(methods.pop("tables.day"), embcomp.Full)
    assert {id(method) for method in methods.values()} == {id(shared)}
    assert (
        choice.served_nbytes
        == sum(embcomp.compress_(Clicks(), choice.methods).served_nbytes for _ in range(1)) + 4 * WIDTH * IDS["day"]
    )


def test_what_must_stay_stays(trained, held_out):
    trained.tables["item"].weight.requires_grad_(False)
    trained.tables["user"].max_norm = 1.0
    choice = embcomp.choose(trained, "90%", data=held_out, keep="*.day")
    notes = {t.name: (kind(t.method), t.note) for t in choice.tables}
    assert notes["tables.item"] == ("Full", "its weight is frozen")
    assert notes["tables.user"][0] == "Full"
    assert "max_norm" in notes["tables.user"][1]
    assert notes["tables.day"] == ("Full", "kept as asked")
    embcomp.compress_(trained, choice.methods)


def test_collections_get_widths_that_fbgemm_holds():
    tables = [EmbeddingBagConfig(name=n, num_embeddings=i, embedding_dim=16, feature_names=[n]) for n, i in IDS.items()]
    model = nn.ModuleDict({"tables": EmbeddingBagCollection(tables=tables)})
    for share in ("20%", "8%", "4%"):
        choice = embcomp.choose(model, share, widths="fbgemm")
        swapped = copy.deepcopy(model)
        embcomp.compress_(swapped, choice.methods)
        widths = {p.shape[1] for n, p in swapped.named_parameters() if n.endswith("weight") and p.ndim == 2}
        assert all(width % 4 == 0 for width in widths), widths


def test_what_features_say_alone_moves_bytes_without_a_model():
    tables = [embcomp.Table(name, 5000, 16) for name in ("a", "b", "noise")]
    even = embcomp.choose(tables, "5%")
    told = embcomp.choose(tables, "5%", worth={"a": 0.05, "b": 0.04, "noise": -0.001, "not a table": 1.0})
    assert told.notes == ["worth names ['not a table'], which no table is called: left out"]
    assert chosen(even, "noise").served > chosen(told, "noise").served
    assert chosen(told, "noise").served < 0.1 * chosen(told, "a").served
    assert chosen(told, "noise").note == "says nothing of the label: drop it"
    with pytest.raises(ValueError, match="worth names no table"):
        embcomp.choose(tables, "5%", worth={"x": 1.0})


def test_a_small_table_that_says_nothing_gets_one_row_of_training_bytes():
    tables = [embcomp.Table("item", 5000, 16), embcomp.Table("day", 7, 16), embcomp.Table("gender", 2, 16)]
    told = embcomp.choose(tables, "20%", count="training", worth={"item": 1.0, "day": 0.01, "gender": 0.0})
    assert kind(chosen(told, "gender").method) == "HashingTrick"
    assert chosen(told, "gender").method.rows == 1
    assert kind(chosen(told, "day").method) == "Full"  # its values stay apart


@pytest.mark.parametrize("count", ["served", "training"])
@pytest.mark.parametrize("cls", [nn.Embedding, nn.EmbeddingBag])
def test_a_padding_vector_counts(cls, count):
    """It is kept beside the rows of any method, unless it is zero."""
    for std in (0.0, 0.1):
        model = nn.ModuleDict({"item": cls(2000, 16, padding_idx=0), "user": nn.Embedding(500, 16)})
        with torch.no_grad():
            model["item"].weight[0] = std
        choice = embcomp.choose(model, "2%", count=count)
        report = embcomp.compress_(model, choice.methods)
        assert choice.nbytes == (report.served_nbytes if count == "served" else report.training_nbytes)
        assert choice.nbytes <= choice.budget


def test_full_tables_of_any_width_may_stay():
    """FBGEMM's limit is for the rows of methods; a table that stays is as it was."""
    tables = [EmbeddingBagConfig(name=n, num_embeddings=i, embedding_dim=6, feature_names=[n]) for n, i in IDS.items()]
    model = nn.ModuleDict({"tables": EmbeddingBagCollection(tables=tables)})
    choice = embcomp.choose(model, "90%", widths="fbgemm", keep="day")
    assert kind(chosen(choice, "day").method) == "Full"
    embcomp.compress_(model, choice.methods)
    with pytest.raises(ValueError, match="widths must be"):
        embcomp.choose(model, "90%", widths="FBGEMM")


def test_open_id_spaces_get_hashed_rows():
    choice = embcomp.choose([embcomp.Table("any", None, 16), embcomp.Table("day", 7, 16)], 100_000)
    assert chosen(choice, "any").method.rows * 64 > 50_000
    assert choice.nbytes <= 100_000
    with pytest.raises(ValueError, match="open id space"):
        embcomp.choose([embcomp.Table("any", None, 16)], "10%")


def test_a_graph_offers_clusters_to_its_two_sides():
    random = torch.Generator().manual_seed(0)
    users, items = torch.randint(600, (5000,), generator=random), torch.randint(800, (5000,), generator=random)
    edges = embcomp.graph.interactions((users, items), num_users=600, num_items=800)
    tables = [embcomp.Table("u", 600, 128), embcomp.Table("i", 800, 128), embcomp.Table("day", 7, 128)]
    for share in ("4%", "3%"):
        choice = embcomp.choose(tables, share, edges=edges)
        assert "GraphHash" in kind(chosen(choice, "u").method) + kind(chosen(choice, "i").method)
    with pytest.raises(ValueError, match="no table has as many ids"):
        embcomp.choose(tables[2:], "50%", edges=edges)
    with pytest.raises(ValueError, match=r"have as many ids \(600\)"):
        embcomp.choose([*tables, embcomp.Table("v", 600, 128)], "10%", edges=edges)


def test_codes_offer_semantic_ids():
    codes = torch.randint(8, (2000, 3), generator=torch.Generator().manual_seed(0))
    options = {"item": [embcomp.Full()]}
    choice = embcomp.choose([embcomp.Table("item", 2000, 16)], "6%", content={"item": codes}, count="training")
    assert choice.nbytes <= choice.budget
    with pytest.raises(ValueError, match=r"content\['item'\] must be semantic codes"):
        embcomp.choose([embcomp.Table("item", 2000, 16)], "6%", content={"item": codes[:5]}, options=options)


def test_content_that_given_options_leave_out_is_named():
    codes = torch.randint(8, (2000, 3), generator=torch.Generator().manual_seed(0))
    tables = [embcomp.Table("item", 2000, 16), embcomp.Table("user", 2000, 16)]
    few, said = [embcomp.LowBit(bits=4)], "tables ['item'] have the given options alone: edges and content add none"
    for options, notes in [({"user": few}, []), ({"it*": few}, [said]), (few, [said])]:
        choice = embcomp.choose(tables, "50%", content={"item": codes}, options=options)
        assert choice.notes == notes


@pytest.mark.parametrize("count", ["served", "training"])
def test_where_new_ids_come_rows_follow_from_content(count):
    """Rows by id would serve them untrained vectors, so content is worth more than the share of the rows it takes."""
    random = torch.Generator().manual_seed(0)
    tables = [embcomp.Table("item", 4000, 16), embcomp.Table("user", 9000, 16)]
    codes = torch.randint(32, (4000, 5), generator=random)
    counts = {"item": torch.randint(3, (4000,), generator=random)}
    choice = embcomp.choose(tables, "20%", content={"item": codes}, counts=counts, count=count)
    method = chosen(choice, "item").method
    method = method.of if isinstance(method, embcomp.LowBit) else method
    assert isinstance(method, embcomp.SemanticIds)
    assert method.codes.shape[1] == 5
    assert method.piece_dropout > 0
    assert torch.equal(method.counts, counts["item"])  # so that ids without any are read as new ones
    assert "Semantic" not in kind(chosen(choice, "user").method)
    without = embcomp.choose(tables, "20%", counts=counts, count=count)
    assert "Semantic" not in kind(chosen(without, "item").method)
    model = torch.nn.ModuleDict({t.name: torch.nn.Embedding(t.num_embeddings, 16) for t in tables})
    assert embcomp.compress_(model, choice.methods).served_nbytes <= 0.2 * 13000 * 64 or count == "training"


@pytest.mark.parametrize(
    ("budget", "arguments", "error"),
    [
        (100, {}, "too small: the least possible is .*, of which table"),
        ("5%", {"keep": "tables.item"}, "of which table 'tables.item' takes 12 800"),
        ("5%", {"keep": "nothing"}, "the pattern 'nothing' matches no table"),
        ("5%", {"options": {"x": [embcomp.Full()]}}, "options: the pattern 'x' matches no table"),
        ("5%", {"options": [embcomp.LowRank(rank=100)]}, "tables.user.*rank 100 .*no option given to it fits"),
        ("5%", {"counts": {"x": torch.ones(3)}}, "counts names 'x'"),
        ("5%", {"counts": {"tables.user": torch.ones(3)}}, "counts must have shape"),
        ("5%", {"loss": log_loss}, "loss needs held-out batches"),
        ("5%", {"data": []}, "data holds no batch"),
        ("5%", {"data": [torch.ones(3)]}, "batches of .inputs..., labels."),
        ("5%", {"data": [(torch.zeros(4, 4, dtype=torch.int64), torch.ones(4))]}, "all 4 labels of data are 1"),
        ("5%", {"data": [(torch.zeros(2, 4, dtype=torch.int64), torch.tensor([1.0, 3.0]))]}, "must be 0 or 1"),
        ("5%", {"count": "both"}, "count"),
        ("5%", {"init": "cold"}, "init"),
        ("no", {}, "is not a size"),
        ("5%", {"edges": torch.zeros(2, 5, dtype=torch.int64)}, "edges must be a graph"),
        ("5%", {"data": 5}, "data must be held-out batches"),
        ("5%", {"cache": "."}, "cache must be a file"),
        ("5%", {"progress": "yes"}, "progress must be True or False"),
        ("5%", {"effort": "all"}, "effort must be a finite number"),
        ("5%", {"effort": 20.0}, "effort must be a share of a full training, at most 10"),
        ("5%", {"loss": "ce"}, "loss must be a function"),
        ("5%", {"train": "fit"}, "train must be a function"),
        ("5%", {"keep": 3}, "keep must be patterns over table names"),
        ("5%", {"data": {"x": 1}}, "data must be held-out batches"),
        ("5%", {"data": "abc"}, "data must be held-out batches"),
        ("5%", {"worth": {"usr": 1.0, "itm": 0.0}}, r"worth names no table: \['itm', 'usr'\]"),
        (
            100,
            {"options": {"tables.[ui]*": [embcomp.UnifiedEmbedding(rows=2000, chunk_dim=4)]}},
            r"of which tables \['tables.user', 'tables.item'\] together take 32 0",
        ),
    ],
)
def test_bad_arguments_are_named(budget, arguments, error):
    with pytest.raises((ValueError, TypeError), match=error):
        embcomp.choose(Clicks(), budget, **arguments)


@pytest.mark.parametrize("count", ["served", "training"])
def test_large_tables_of_different_widths(count):
    """A store of chunks of 8 for both would have more than 2^31 rows."""
    tables = [embcomp.Table("user", 200_000_000, 128), embcomp.Table("item", 1_000_000, 8)]
    choice = embcomp.choose(tables, "5%", count=count)
    assert 0.5 * choice.budget < choice.nbytes <= choice.budget


def test_codes_that_cannot_be_are_named():
    codes = torch.randint(16, (600, 4), generator=torch.Generator().manual_seed(0))
    codes[5, 0] = -1
    with pytest.raises(ValueError, match=r"content\['item'\]: codes of item 5 are \[-1"):
        embcomp.choose([embcomp.Table("item", 600, 16)], "20%", content={"item": codes})


def test_bytes_that_are_not_counted_are_said():
    model = nn.ModuleDict({"a": nn.Embedding(500, 16), "b": nn.Embedding(300, 16, dtype=torch.float64)})
    embcomp.compress_(model, {"a": embcomp.LowBit(bits=4)})
    first, second = embcomp.choose(model, 5000).notes
    assert "tables ['b'] hold more: they will take up to twice the budget" in first
    assert second == "tables ['a'] are compressed or fused already: they stay as they are, and their bytes do not count"


def test_tables_that_say_nothing_get_no_spare_bytes():
    tables = [embcomp.Table("user", 2000, 16), embcomp.Table("req", 60_000, 16)]
    (little, more) = (
        embcomp.choose(tables, f"{share}%", worth={"user": 1.0, "req": 0.0}).tables[1].served for share in (5, 20)
    )
    assert little == more < 0.001 * 4 * 60_000 * 16
