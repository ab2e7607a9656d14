"""Next-item runs: ranks against plain Python, metrics and their slices, resuming, what is refused."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import embcomp
from data.next_items import NextItems
from data.sequences import Sequences
from embcomp.ops.kmeans import no_progress
from embcomp.semantic_ids import ResidualKMeans
from experiments.errors import Diverged, Infeasible, InputError
from experiments.load import check
from experiments.runs.runner import Settings, execute
from experiments.tasks import content as semantic
from experiments.tasks.next_ranks import next_item_metrics, ranks_of
from experiments.tasks.task import prepare
from experiments.training.train import Trainer
from recsys_models import SASRec

CPU = torch.device("cpu")


@pytest.fixture
def small():
    return {
        "experiment": "next",
        "data": {"name": "synthetic", "options": {"num_rows": 3000, "num_users": 60, "num_items": 90, "drift": 0.0}},
        "model": {"name": "SASRec", "embedding_dim": 8, "init_normal": 0.05, "options": {"blocks": 1}},
        "optimizer": {"lr": 0.01},
        "training": {"batch_size": 16, "eval_batch_size": 7, "epochs": 3, "monitor": "valid/ndcg@10"},
        "next_items": {"length": 20},
        "slices": {"head": {"feature": "item", "min_count": 30}, "tail": {"feature": "item", "max_count": 29}},
        "methods": [{"method": "Full"}],
    }


class Rounded(SASRec):
    """Scores of few different values, so that many are equal."""

    def scorer(self, items=None):
        scorer = super().scorer(items)
        return lambda history, mask: (2 * scorer(history, mask)).round()


@settings(max_examples=30)
@given(seed=st.integers(0, 2**16), split=st.sampled_from(["valid", "test"]), size=st.integers(1, 9))
def test_ranks_by_hand(seed, split, size):
    """Sorted by score, then by the fixed order, without what the user has met."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(5, 12, size=8)
    items = draw.integers(0, 20, size=int(lengths.sum()))
    events = NextItems(items, np.cumsum([0, *lengths]), np.arange(20))
    torch.manual_seed(seed)
    model = Rounded(nn.Embedding(20, 4), length=6)
    found = ranks_of(model, events, split, 6, size, CPU)
    assert model.training
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0)).tolist()
    back = {"valid": 2, "test": 1}[split]
    model.eval()
    for user, part in enumerate(np.split(items, np.cumsum(lengths)[:-1])):
        past, wanted = part[:-back].tolist(), int(part[-back])
        history = torch.tensor(past[-6:])[None]
        with torch.no_grad():
            scores = model.scorer()(history, torch.ones_like(history, dtype=torch.bool))[0].tolist()
        for item in past:
            scores[item] = -math.inf  # an item that comes again stays at the end, below those that are not ranked
        ranked = sorted(order, key=lambda item: -scores[item])
        assert found[user] == 1 + ranked.index(wanted)


def test_held_out_batches_are_windows_of_the_train_split(make_run):
    task = prepare(make_run())
    windows = {tuple(row.tolist()) for batch in task.batches(3, 0) for row in batch.history}
    held_out, again = (task.held_out(2, 16) for _ in range(2))
    assert [len(batch.history) for batch in held_out] == [16, 16]
    rows = [tuple(row[row > 0].tolist()) for batch in held_out for row in batch.history]
    assert set(rows) <= {tuple(item for item in row if item) for row in windows}
    assert all(torch.equal(a.history, b.history) for a, b in zip(held_out, again, strict=True))
    assert torch.isfinite(task.loss(task.model(CPU).model, held_out[0]))


def test_metrics_by_hand():
    ranks = torch.tensor([1, 3, 10, 11, 60])
    slices = {"head": torch.tensor([True, False, True, False, False]), "none": torch.zeros(5, dtype=torch.bool)}
    found = next_item_metrics(ranks, slices)
    assert found == pytest.approx({
        "recall@10": 3 / 5, "ndcg@10": (1 + 1 / 2 + 1 / math.log2(11)) / 5,
        "recall@50": 4 / 5, "ndcg@50": (1 + 1 / 2 + 1 / math.log2(11) + 1 / math.log2(12)) / 5,
        "recall@10/head": 1.0, "ndcg@10/head": (1 + 1 / math.log2(11)) / 2,
        "recall@50/head": 1.0, "ndcg@50/head": (1 + 1 / math.log2(11)) / 2,
        "rows/head": 2, "rows/none": 0,
    })  # fmt: skip


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_said(bad):
    events = NextItems(np.arange(20) % 7, np.array([0, 10, 20]), np.arange(7))
    model = SASRec(nn.Embedding(7, 4), length=6)
    nn.init.constant_(model.norm.bias, bad)
    with pytest.raises(Diverged, match="NaN or infinite scores"):
        ranks_of(model, events, "test", 6, 1, CPU)


@pytest.mark.parametrize(
    ("model", "negatives", "method"),
    [
        ("SASRec", 0, {"method": "Full"}),
        ("GRU4Rec", 20, {"method": "HashingTrick", "share": 0.5}),
        ("BERT4Rec", 0, {"method": "LowBit", "share": 0.2, "options": {"bits": 8, "of": {"method": "DoubleHash"}}}),
    ],
)
def test_runs_of_all_models(small, tmp_path, model, negatives, method):
    small |= {"methods": [method], "optimizer": {"lr": 0.02}}
    small["model"] |= {"name": model, "options": {}}
    small["next_items"]["negatives"] = negatives
    run = next(check(small, "x").runs())
    assert run.name.startswith(f"synthetic-{model}-")
    assert execute(run, Settings(tmp_path, tmp_path / "out"), no_progress)[0] == "done"
    written = json.loads((tmp_path / "next" / f"{run.name}.json").read_text())
    found = written["metrics"]
    assert found["test/rows/head"] + found["test/rows/tail"] == prepare(run).data.num_users
    whole = sum(found[f"test/recall@10/{part}"] * found[f"test/rows/{part}"] for part in ("head", "tail"))
    assert whole / prepare(run).data.num_users == pytest.approx(found["test/recall@10"])
    losses = [epoch["train/loss"] for epoch in written["history"]]
    assert losses[-1] < losses[0]
    assert written["nbytes"] <= written["full_nbytes"] * method.get("share", 1)


def test_it_learns_a_rule(small):
    """The item after i is i + 1: soon it is at the top."""
    starts = np.random.default_rng(0).integers(0, 30, size=80)
    items = np.concatenate([(start + np.arange(12)) % 30 for start in starts])
    events = Sequences(items, np.full(len(items), 5, np.int8), np.arange(0, len(items) + 1, 12), 30)
    task = prepare(next(check(small, "x").runs()))
    object.__setattr__(task, "data", NextItems.of(events))
    model = SASRec(nn.Embedding(30, 16), length=20, blocks=1, dropout=0.0)
    nn.init.normal_(model.items.weight, std=0.05)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(15):
        for batch in task.batches(epoch, 0):
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()
    assert task.evaluate(model, "test", CPU)["test/recall@10"] == 1.0
    assert task.evaluate(model, "test", CPU)["test/ndcg@10"] > 0.9


def test_counts_come_from_training_and_draw_negatives(small):
    small["methods"] = [{"method": "FrequencyHash", "share": 0.5}]
    small["next_items"] |= {"negatives": 5, "power": 0.5}
    task = prepare(next(check(small, "x").runs()))
    counts = task.method.counts["item"]
    assert torch.equal(counts, task.data.counts())
    assert counts.sum() == len(task.data.items) - 2 * task.data.num_users
    drawn = task._log_q.exp()
    assert drawn.sum().item() == pytest.approx(1)
    wanted = counts.clamp(min=1).sqrt() / counts.clamp(min=1).sqrt().sum()
    torch.testing.assert_close(drawn, wanted)


def test_an_interrupted_epoch_goes_on(small, tmp_path):
    task = prepare(next(check(small, "x").runs()))
    whole = [batch.history for batch in task.batches(1, 0)]
    assert len(whole) == task.steps
    assert all(torch.equal(a, b.history) for a, b in zip(whole[2:], task.batches(1, 2), strict=True))
    outcome = Trainer(task, folder=tmp_path, key="k", device=CPU, report=no_progress).fit()
    assert "valid/ndcg@10" in outcome.metrics
    assert not any("head" in name for name in outcome.progress.history[0])


CODES = {"tokenizer": "ResidualKMeans", "levels": 2, "codebook_size": 4}
SEMANTIC = {"codes": CODES, "pieces": {"kind": "PrefixNgram", "n": 2}}


@pytest.fixture
def content(monkeypatch, tmp_path):
    """Content vectors of the synthetic items but the first."""
    ids = np.arange(1, 90)
    vectors = np.random.default_rng(0).normal(size=(89, 6)).astype(np.float32)
    np.savez(tmp_path / "vectors.npz", ids=ids, vectors=vectors)
    monkeypatch.setattr(semantic, "vectors_file", lambda name: tmp_path / "vectors.npz")
    return dict(zip(ids.tolist(), torch.from_numpy(vectors), strict=True))


def codes_by_hand(content, events):
    """Of the items of training, by their own vectors."""
    known = [item for item in range(events.num_items) if int(events.values[item]) in content]
    vectors = torch.stack([content[int(events.values[item])] for item in known])
    seen = events.counts()[known] > 0
    tokenizer = ResidualKMeans(2, 4).fit(vectors[seen])
    codes = torch.full((events.num_items, 2), -1, dtype=torch.int32)
    codes[known] = tokenizer.encode(vectors)
    return codes


def test_codes_come_from_content(small, content):
    small["methods"] = [
        {"method": "SemanticIds", "share": 0.5, "options": SEMANTIC},
        {"method": "LowBit", "share": 0.2, "options": {"bits": 4, "of": {"method": "SemanticIds", **SEMANTIC}}},
    ]
    tasks = [prepare(run) for run in check(small, "x").runs()]
    expected = codes_by_hand(content, tasks[0].data)
    assert tasks[0].data is tasks[1].data  # made once, and so are the codes
    for method, task in ((tasks[0].method, tasks[0]), (tasks[1].method.of, tasks[1])):
        assert torch.equal(method.codes, expected)
        assert torch.equal(method.counts["item"], task.data.counts())
        assert task.model(CPU).nbytes <= task.run.budget[1] * task.full_nbytes


def test_h2rec_pays_for_its_levels(small, content, tmp_path):
    small["model"] |= {"name": "H2Rec"}
    small["next_items"]["codes"] = CODES
    small["methods"] = [{"method": "HashingTrick", "share": 0.5}]
    run = next(check(small, "x").runs())
    task = prepare(run)
    built = task.model(CPU)
    assert torch.equal(built.model.codes.codes, codes_by_hand(content, task.data).remainder(5).to(torch.uint8))
    levels = 4 * 2 * 4 * 8 + 2 * task.data.num_items
    assert built.nbytes == levels + embcomp.served_nbytes(built.model.items)
    assert 0.45 * task.full_nbytes < built.nbytes <= 0.5 * task.full_nbytes
    assert execute(run, Settings(tmp_path, tmp_path / "out"), no_progress)[0] == "done"
    history = json.loads((tmp_path / "next" / f"{run.name}.json").read_text())["history"]
    assert history[-1]["train/loss"] < history[0]["train/loss"]
    small["methods"] = [{"method": "HashingTrick", "nbytes": levels}]
    with pytest.raises(Infeasible):
        prepare(next(check(small, "x").runs()))


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("model", {"name": "H2Rec"}, "next_items.codes: H2Rec reads semantic codes: name a tokenizer"),
        ("next_items", {"codes": {**CODES, "tokenizer": "VQ"}}, "next_items.codes.tokenizer: unknown tokenizer 'VQ'"),
        ("model", {"name": "DCN"}, "model.name: unknown model 'DCN'"),
        ("model", {"name": "SASRek"}, "did you mean 'SASRec'"),
        ("model", {"options": {"block": 1}}, "did you mean 'blocks'"),
        ("model", {"linear": True}, "sequence models take no first-order weights"),
        ("data", {"name": "gowalla"}, "data.name: unknown data set 'gowalla'"),
        ("next_items", {"lengths": 3}, "unknown key 'next_items.lengths': did you mean 'length'?"),
        ("next_items", {"core": 0}, "next_items.core: .*greater than or equal to 1"),
        ("slices", {"old": {"feature": "history"}}, "next-item runs have slices of 'item', not of 'history'"),
        ("optimizer", {"embedding": "SGD"}, "tables of sequence models are not fused"),
        ("training", {"monitor": "valid/auc"}, "run has no valid/auc; set it, for example, to 'valid/ndcg@10'"),
        ("methods", [{"method": "LowBit", "fine_tuned": 0.3}], "fine_tuned: only click-through and retrieval runs"),
        ("methods", [{"method": "LowBit", "after_training": True}], "after_training: only click-through and retrieval"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(small, section, values, message):
    small[section] = {**small.get(section, {}), **values} if isinstance(values, dict) else values
    with pytest.raises(InputError, match=message):
        check(small, "next.toml")


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("next_items", {"core": 2}, "next_items.core: core must be 3 or more"),
        ("next_items", {"core": 500}, "no user and no item occurs 500 times"),
        ("methods", [{"method": "HashingTrick", "share": 0.5, "table": "user"}], "no table 'user', only 'item'"),
        ("methods", [{"method": "GraphHash", "share": 0.5}], "have no table of users"),
        ("model", {"options": {"heads": 3}}, "model 'SASRec': 3 heads do not divide"),
    ],
)
def test_what_the_model_or_the_data_reject_is_an_input_error(small, section, values, message):
    small[section] = {**small[section], **values} if isinstance(values, dict) else values
    with pytest.raises(InputError, match=message):
        prepare(next(check(small, "x").runs())).model(CPU)
