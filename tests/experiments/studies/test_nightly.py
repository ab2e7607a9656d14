"""Seven nights: what a night reads, that growth moves nothing, that runs go on, that wrong answers are counted."""

import json
import tomllib
from pathlib import Path
from time import sleep

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console

import embcomp
from embcomp.retrieval import VectorCodes
from experiments.errors import InputError
from experiments.studies.nightly import nights, run_all, service, write_markdown
from experiments.studies.nightly.clicks import DAY, Clicks, read
from experiments.studies.nightly.growth import Growing, fresh, grown
from experiments.studies.nightly.model import Readers, Vectors, arguments, hits
from experiments.studies.nightly.runs import CONFIG

BRASILIA = 3 * 3_600_000  # the first day begins there
METHODS = {
    "Full": {"method": "Full"},
    "Unified": {"method": "UnifiedEmbedding", "rows": 30, "chunk_dim": 4},
    "GraphHash": {"method": "GraphHash", "rows": 12, "unseen": 2, "own": 3, "readers": 10},
    "SemanticIds": {"method": "SemanticIds", "rows": 20, "levels": 2, "codebook_size": 4},
    "bits": {"method": "LowBit", "bits": 4, "of": {"method": "Full"}},
}
TOML = """
seeds = [0]
data = { readers = 1.0, days = 3, length = 4, held_out = 0.2, tested = 50, seed = 0 }

[training]
embedding_dim = 8
batch_size = 64
negatives = 16
lr = 0.01
epochs = 1
epochs_of_a_day = 1
least_steps = 3
anchor = 0.1
index_bits = 4

[[methods]]
label = "Full"
method = "Full"

[[methods]]
label = "Unified"
method = "UnifiedEmbedding"
rows = 30
chunk_dim = 4
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Clicks of four days: on the first 20 articles, from the second day on 30, then 40, and one without a vector."""
    monkeypatch.setenv("EMBCOMP_DATA", str(tmp_path))
    rng = np.random.default_rng(0)
    day = np.repeat(np.arange(4), 150)
    article = 100 + rng.integers(0, np.minimum(20 + 10 * day, 40))
    article[::50] = 999
    frame = {"user_id": rng.integers(0, 40, 600), "click_article_id": article}
    clicks = pl.DataFrame(frame | {"click_timestamp": BRASILIA + day * DAY + rng.integers(0, DAY, 600)})
    (tmp_path / "globo").mkdir()
    clicks.write_parquet(tmp_path / "globo" / "clicks.parquet")
    ids = np.arange(139, 99, -1)
    vectors = rng.normal(size=(40, 5)).astype(np.float32)
    np.savez(tmp_path / "globo" / "article_embeddings.npz", article_id=ids, embedding=vectors)
    return tmp_path / "globo"


def clicks_of(folder: Path) -> Clicks:
    return read(folder, readers=1.0, length=4, held_out=0.2, seed=0)


def test_clicks_are_the_first_ones_with_what_was_read_before(folder):
    found = clicks_of(folder)
    frame = pl.read_parquet(folder / "clicks.parquet").filter(pl.col("click_article_id") != 999)
    numbers: dict[int, int] = {}
    past: dict[int, list[int]] = {}
    expected = []
    for user, article, time in frame.sort("click_timestamp").iter_rows():
        if article in past.setdefault(user, []):
            continue
        before = [numbers[each] for each in past[user][-4:]]
        numbers.setdefault(article, len(numbers))
        past[user].append(article)
        expected.append([(time - BRASILIA) // DAY, numbers[article], *[-1] * (4 - len(before)), *before])
    rows = torch.cat([found.days.unsqueeze(1), found.articles.unsqueeze(1), found.histories], 1)
    assert rows.tolist() == expected
    with np.load(folder / "article_embeddings.npz") as arrays:
        of = dict(zip(arrays["article_id"].tolist(), arrays["embedding"], strict=True))
    assert np.array_equal(found.content.numpy(), [of[article] for article in numbers])
    assert found.readers.max() + 1 == len(past)
    assert 0.1 < found.held_out.float().mean() < 0.3


def test_a_sample_of_readers_has_all_their_clicks(folder):
    everyone, some = clicks_of(folder), read(folder, readers=0.5, length=4, held_out=0.2, seed=0)
    assert 0.3 < len(some.articles) / len(everyone.articles) < 0.7
    per_reader = [torch.bincount(each.readers).sort().values.tolist() for each in (everyone, some)]
    assert not set(per_reader[1]) - set(per_reader[0])


def test_hits_are_those_of_a_full_ranking():
    vectors = Vectors(torch.randn(30, 6), torch.randn(1, 6))
    histories = torch.randint(-1, 30, (50, 3))
    histories[0] = -1
    targets = torch.randint(30, (50,))
    found = hits(vectors, targets, histories, 5)
    for row, history in enumerate(histories.tolist()):
        known = [article for article in history if article >= 0]
        mean = vectors.articles[known].mean(0) if known else torch.zeros(6)
        scores = vectors.articles @ (mean + vectors.start[0])
        scores[known] = -torch.inf
        assert bool(found[row]) == (int(targets[row]) in scores.topk(5).indices.tolist())


def test_articles_of_one_vector_take_turns():
    same = Vectors(torch.ones(40, 4), torch.ones(1, 4))
    found = hits(same, torch.arange(40), torch.full((40, 2), -1), 10)
    assert int(found.sum()) == 10  # neither all nor none, and not the first ones
    assert not bool(found[:10].all())


@pytest.mark.parametrize("name", METHODS)
def test_growth_moves_no_trained_article(folder, name):
    clicks = clicks_of(folder)
    growing = Growing(clicks, METHODS[name], seed=0)
    table = fresh(growing.method(0, 0), clicks.number(0), 8, seed=1)
    longer = grown(table, growing.method(1, 0), clicks.number(1), seed=2)
    before, now = table.materialize().detach(), longer.materialize().detach()
    assert len(before) == clicks.number(0) < clicks.number(1) == len(now)
    trained = clicks.counts(clicks.rows(0, 0), len(before)) > 0
    now = now[: len(before)]
    if name == "bits":  # the step is that of all rows: to half of it
        step = before.unique().diff().max()
        assert float((now - before).abs().max()) <= float(step)
    else:
        assert torch.equal(now[trained], before[trained])


def test_a_model_computes_readers_as_its_vectors_do(folder):
    clicks = clicks_of(folder)
    model = Readers(fresh(embcomp.Full(), clicks.number(3), 8, seed=0))
    histories = clicks.histories[:20]
    expected = Vectors.of(model).readers(histories)
    assert torch.allclose(model(*arguments(histories, clicks.number(3))), expected, atol=1e-6)


def test_nights_leave_files_and_go_on(folder, tmp_path):
    (tmp_path / "nightly.toml").write_text(TOML)
    run = [tmp_path / "results", tmp_path / "out", Console(quiet=True), tmp_path / "nightly.toml"]
    run_all(*run)
    file = tmp_path / "results" / "nightly" / "globo" / "Full-seed0.json"
    first = json.loads(file.read_text())
    assert len(first["nights"]) == 3
    for night in first["nights"][1:]:
        assert night["swap"] == {**night["swap"], "wrong": 0, "refused": 2}
        assert night["moved"] == 0.0
        assert {"chain", "cold", "alone", "alone_next_day"} <= night.keys()
        assert night["index_nbytes"] == embcomp.retrieval.way(bits=4).nbytes(night["articles"], 8)
    run_all(*run)
    assert json.loads(file.read_text()) == first  # nothing was left to do
    file.write_text(json.dumps({**first, "nights": first["nights"][:1]}))  # as after a kill
    run_all(*run)
    again = json.loads(file.read_text())
    measured = ("cold_seconds", "chain_seconds", "swap")
    for one, other in zip(first["nights"], again["nights"], strict=True):
        assert {k: v for k, v in one.items() if k not in measured} == {
            k: v for k, v in other.items() if k not in measured
        }
    page = write_markdown(tmp_path / "results", tmp_path).read_text()
    later = [night["chain"] for night in first["nights"][1:]]
    assert f"| {100 * sum(later) / 2:.1f} |" in page
    assert "| Unified |" in page


def test_models_of_other_settings_begin_again(folder, tmp_path):
    (tmp_path / "nightly.toml").write_text(TOML)
    run = [tmp_path / "results", tmp_path / "out", Console(quiet=True), tmp_path / "nightly.toml"]
    run_all(*run, pattern="Full")
    file = tmp_path / "results" / "nightly" / "globo" / "Full-seed0.json"
    first = json.loads(file.read_text())
    file.write_text(json.dumps({**first, "nights": first["nights"][:1]}))
    (tmp_path / "out" / "Full-seed0" / "night-0.safetensors").unlink()
    run_all(*run, pattern="Full")
    assert len(json.loads(file.read_text())["nights"]) == 3


def test_wrong_answers_are_counted(folder, tmp_path, monkeypatch):
    clicks = clicks_of(folder)
    for night in (0, 1):
        model = Readers(fresh(embcomp.Full(), clicks.number(1), 8, seed=night))
        service.publish(model, tmp_path, f"night-{night}", 4, 4)
    asked = arguments(clicks.histories[:10], clicks.number(1))

    class Mixing(service.Service):
        """A service that swaps the program first, and the codes only after more answers."""

        def load(self, folder, readers, articles):
            if hasattr(self, "state") and readers == articles:
                old = self.state[2]
                program = embcomp.serving.load(folder / f"readers-{readers}.pt2").module()
                codes = VectorCodes(old.form, metric="dot", version=readers, settings={})
                self.state = readers, program, codes
                answered = self.answered  # now: while the program was loaded there were answers, too
                while self.answered < answered + 3:
                    sleep(0.001)
            super().load(folder, readers, articles)

        answered = 0

        def answer(self, *arguments):
            result = super().answer(*arguments)
            self.answered += 1
            return result

    for kind, wrong in ((service.Service, False), (Mixing, True)):
        each = kind()
        each.load(tmp_path, "night-0", "night-0")
        figures = service.swapped(each, tmp_path, "night-0", "night-1", asked)
        assert (figures["wrong"] > 0) == wrong
        assert figures["refused"] == 2


def test_data_that_are_not_there_are_named(tmp_path, monkeypatch):
    run = [tmp_path, tmp_path, Console(quiet=True)]
    monkeypatch.setenv("EMBCOMP_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"no folder .*globo"):
        run_all(*run)
    monkeypatch.delenv("EMBCOMP_DATA")
    with pytest.raises(InputError, match="set EMBCOMP_DATA"):
        run_all(*run)


def test_the_file_of_the_repository_has_every_method():
    values = tomllib.loads(CONFIG.read_text())
    assert values["data"]["days"] == 7
    kinds = {method["method"] for method in values["methods"]}
    assert kinds == {"Full", "GraphHash", "SemanticIds", "UnifiedEmbedding", "LowBit"}
    assert nights.K == 10
