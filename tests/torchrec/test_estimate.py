"""Plans for GPUs that are not there: bytes against closed forms and against messages counted one by one."""

from pathlib import Path

import pytest
from torchrec import EmbeddingBagConfig
from typer.testing import CliRunner

import embcomp
from embcomp.testing.examples import EXAMPLES
from embcomp.torchrec.cli import app
from embcomp.torchrec.estimate import _sent, _Store, estimate
from tests.torchrec.batches import as_tables, bag_tables

PAGE = Path(__file__).parents[2] / "docs" / "multi-node.md"
BATCH, DIM = 24, 16


def billions(features: int, ids: int = 10**9) -> list[EmbeddingBagConfig]:
    return [
        EmbeddingBagConfig(name=f"t{i}", num_embeddings=ids, embedding_dim=DIM, feature_names=[f"f{i}"])
        for i in range(features)
    ]


@pytest.mark.parametrize("gpus", [1, 2, 8])
@pytest.mark.parametrize(("pooled", "weighted"), [(True, False), (True, True), (False, False)])
def test_bytes_sent_are_those_of_all_messages(gpus: int, pooled: bool, weighted: bool) -> None:
    """Rows of one feature lie on some GPUs in turn; every id, length, vector and gradient is sent by hand."""
    for holders in {1, min(4, gpus), gpus}:
        for lookups in (1, 3):
            ids = vectors = 0
            for here in range(gpus):
                for holder in range(holders):
                    ids += (holder != here) * BATCH * 8  # how many rows each bag reads from this holder
                for bag in range(BATCH):
                    read = [(bag * lookups + j) % holders for j in range(lookups)]
                    ids += sum(12 if weighted else 8 for holder in read if holder != here)
                    answers = range(holders) if pooled else read  # a reduce-scatter has a part of every sum
                    vectors += sum(4 * DIM for holder in answers if holder != here)
            sent = _sent({"t": _Store((lookups,), DIM, pooled, weighted)}, {"t": holders}, gpus, BATCH, 1.0)
            assert (sent.ids * gpus, sent.vectors * gpus, sent.gradients * gpus) == (ids, vectors, vectors)
            assert sent.total == sent.ids + 2 * sent.vectors


def test_memory_holds_rows_and_state_and_little_else() -> None:
    """Four tables of 10^7 rows on 8 GPUs, one row each bag: what the planner adds are ids in and vectors out."""
    found = estimate(billions(4), {"*": embcomp.HashingTrick(rows=10**7)}, gpus=8, batch_size=BATCH)
    rows, state = 4 * 10**7 * DIM * 4, 4 * 10**7 * 4
    assert (found.nbytes, found.state) == (rows + 4 * 8, state)
    assert sum(found.sharding.values()) == 4
    buffers = sum(found.memory) - rows - state - 8 * 4 * 8  # the keys are on every GPU
    assert 0 < buffers <= 4 * 8 * 8 * BATCH * (8 + 4 * DIM)
    twice = estimate(billions(4), {"*": embcomp.DoubleHash(rows=10**7)}, gpus=8, batch_size=BATCH)
    assert twice.sent.vectors == found.sent.vectors  # two rows are one sum
    assert twice.sent.ids == found.sent.ids + 4 * 7 / 8 * BATCH * 8


def test_one_shared_store_is_spread_over_the_gpus() -> None:
    method = embcomp.UnifiedEmbedding(rows=10**9, chunk_dim=8)
    found = estimate(billions(4), {"*": method}, gpus=4, gpu_bytes=20 * 10**9)
    assert found.sharding == {"row_wise": 1}
    assert found.sent.vectors == 3 / 4 * 8192 * 4 * (4 * 2 * 8) * 4  # 4 holders, 4 features of 2 chunks of 8
    assert max(found.memory) - min(found.memory) < 0.01 * max(found.memory)


def test_what_does_not_fit_is_said() -> None:
    """26 tables of 10^9 ids, 64 wide: 6.656 TB and .104 TB of state need 100 GPUs of which 68 GB are free."""
    tables = [
        EmbeddingBagConfig(name=f"t{i}", num_embeddings=10**9, embedding_dim=64, feature_names=[f"f{i}"])
        for i in range(26)
    ]
    found = estimate(tables, {}, gpus=8)
    assert found.nbytes == 26 * 10**9 * 64 * 4
    assert "6.76 TB of rows and their state, 544 GB on 8 GPUs; it takes at least 100" in found.problem
    assert (found.sent, found.memory, found.sharding) == (None, (), {})
    whole = estimate(billions(1), {}, gpus=1, gpu_bytes=80 * 10**9)  # 64 GB and 4 GB of state, as much as is free
    assert "in whole shards" in whole.problem


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_every_method_is_planned(example) -> None:
    """On one GPU nothing is sent, and the bytes are those of the collection itself."""
    tables = bag_tables()
    method = example.make(as_tables(tables))
    found = estimate(tables, {"*": method}, gpus=1)
    collection = embcomp.torchrec.CompressedEmbeddingBagCollection(tables, {"*": method})
    assert found.nbytes == embcomp.nbytes(collection)
    assert found.problem == ""
    assert found.sent.total == 0


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"gpus": 0}, "gpus must be at least 1, got 0"),
        ({"gpus": 12}, "gpus=12 is not a multiple of gpus_per_node=8"),
        ({"gpus": 8, "reserve": 1.0}, "reserve must be in"),
        ({"gpus": 8, "ids_per_bag": 0.0}, "must be positive, got 8192 and 0.0"),
    ],
)
def test_bad_settings(settings, text) -> None:
    with pytest.raises(ValueError, match=text):
        estimate(billions(1), {}, **settings)


def test_the_page_shows_what_the_command_prints() -> None:
    shown = CliRunner().invoke(app, ["--gpus", "1", "--share", "0.01", "--markdown"])
    assert shown.exit_code == 0, shown.output
    page = PAGE.read_text().splitlines()
    lines = shown.output.splitlines()
    assert len(lines) == 2 + 5
    assert [line for line in lines if line not in page] == []


def test_methods_that_need_data_or_do_not_exist_are_refused() -> None:
    for name, text in (("FrequencyHash", "made from data"), ("Hash", "the methods are"), ("DoubleHash/40", "NAME/2")):
        shown = CliRunner().invoke(app, ["--method", name, "--features", "2", "--ids", "1000", "--gpus", "1"])
        assert shown.exit_code == 2
        assert text in shown.output
