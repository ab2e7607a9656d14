"""The loader against a plain reading of the rows."""

import dataclasses
from collections.abc import Iterable

import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import DataError
from data.batch import Batch

FEATURES = ["user", "tags", "item", "more"]


def unpack(batches: Iterable[Batch]) -> pl.DataFrame:
    """Batches -> rows, one value at a time."""
    rows = []
    for batch in batches:
        size = len(batch)
        assert batch.sparse.keys() == FEATURES
        assert batch.sparse.stride() == size
        assert batch.sparse.values().dtype == torch.int64
        assert batch.label.dtype == batch.dense.dtype == torch.float32
        assert batch.dense.shape == (size, 2)
        assert batch.columns["user"].dtype == torch.int64
        features = batch.sparse.to_dict()
        for i in range(size):
            row = {"row": batch.columns["row"][i].item(), "label": int(batch.label[i].item())}
            for name in FEATURES:
                offsets = features[name].offsets()
                row[name] = features[name].values()[offsets[i] : offsets[i + 1]].tolist()
            row["price"], row["age"] = batch.dense[i].tolist()
            assert row["user"] == [batch.columns["user"][i].item()]
            rows.append(row)
    return pl.DataFrame(rows, schema_overrides=dict.fromkeys(FEATURES, pl.List(pl.Int64)), infer_schema_length=None)


def expected(rows: pl.DataFrame) -> pl.DataFrame:
    single = [pl.concat_list(name).alias(name) for name in ("user", "item")]
    floats = [pl.col(name).cast(pl.Float32).cast(pl.Float64) for name in ("price", "age")]
    return rows.with_columns(*single, *floats).select("row", "label", *FEATURES, "price", "age")


def test_batches_hold_the_rows_in_order(make_clicks):
    clicks, rows = make_clicks(333)
    assert unpack(clicks.loader("train", 50)).equals(expected(rows))
    assert [len(batch) for batch in clicks.loader("train", 50)] == [50] * 6 + [33]
    assert [len(batch) for batch in clicks.loader("train", 50, drop_last=True)] == [50] * 6


@pytest.mark.parametrize("window_rows", [1, 100, 1 << 20])
def test_shuffled_batches_hold_each_row_once_and_whole(make_clicks, window_rows):
    clicks, rows = make_clicks(500, chunk_rows=32)
    seen = unpack(clicks.loader("train", 48, shuffle=True, seed=3, window_rows=window_rows))
    assert seen["row"].to_list() != rows["row"].to_list()
    assert seen.sort("row").equals(expected(rows))


def order(clicks, **options) -> list[int]:
    return torch.cat([batch.columns["row"] for batch in clicks.loader("train", 64, **options)]).tolist()


def test_order_depends_on_seed_and_epoch_alone(make_clicks):
    clicks, _ = make_clicks(400, chunk_rows=32)
    orders = {
        (seed, epoch): order(clicks, shuffle=True, seed=seed, epoch=epoch, window_rows=100)
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len({tuple(rows) for rows in orders.values()}) == 4
    for (seed, epoch), rows in orders.items():
        assert order(clicks, shuffle=True, seed=seed, epoch=epoch, window_rows=100, prefetch=2) == rows


def test_rows_of_one_window_are_permuted_evenly(make_clicks):
    clicks, _ = make_clicks(256, chunk_rows=32)
    first = torch.tensor([order(clicks, shuffle=True, seed=seed)[:64] for seed in range(60)])
    # Each of 256 rows is in the first quarter of an order with probability 1/4, whatever its chunk.
    hits = torch.bincount(first.flatten() // 32, minlength=8).float()
    assert ((hits - 480).abs() < 5 * (3840 * 7 / 64) ** 0.5).all()


@pytest.fixture
def small_clicks(make_clicks):
    return make_clicks(130, chunk_rows=16)[0]


# The data set is only read, so that all examples may share it.
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch_size=st.integers(6, 130), shuffle=st.booleans(), drop_last=st.booleans(), window=st.integers(1, 200))
def test_every_start_batch_resumes_exactly(small_clicks, batch_size, shuffle, drop_last, window):
    clicks = small_clicks
    options = {"shuffle": shuffle, "drop_last": drop_last, "window_rows": window, "seed": 5, "epoch": 2}
    whole = list(clicks.loader("train", batch_size, **options))
    assert len(whole) == (130 // batch_size if drop_last else -(-130 // batch_size))
    for start in range(len(whole) + 1):
        loader = clicks.loader("train", batch_size, start_batch=start, **options)
        rest = list(loader)
        assert len(loader) == len(rest) == len(whole) - start
        for left, right in zip(rest, whole[start:], strict=True):
            assert torch.equal(left.columns["row"], right.columns["row"])
            assert torch.equal(left.sparse.values(), right.sparse.values())
            assert torch.equal(left.sparse.lengths(), right.sparse.lengths())
            assert torch.equal(left.dense, right.dense)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch_size=st.integers(1, 60), parts=st.integers(1, 5))
def test_shares_make_the_whole_and_are_equally_large(small_clicks, batch_size, parts):
    options = {"shuffle": True, "window_rows": 40, "start_batch": 1}
    shares = [list(small_clicks.loader("train", batch_size, share=(part, parts), **options)) for part in range(parts)]
    for batch, *mine in zip(small_clicks.loader("train", batch_size, **options), *shares, strict=True):
        assert {len(part) for part in mine} == {-(-len(batch) // parts)}
        assert {part.total for part in mine} == {len(batch)}
        rows = [row for part in mine for row in part.columns["row"][: len(part) - part.padding].tolist()]
        assert rows == batch.columns["row"].tolist()


def test_resuming_reads_no_skipped_chunk(make_clicks, monkeypatch):
    from data.window import Window

    clicks, _ = make_clicks(320, chunk_rows=32)
    read, original = [], Window.read
    monkeypatch.setattr(Window, "read", lambda chunks, *rest: read.append(len(chunks)) or original(chunks, *rest))
    list(clicks.loader("train", 32, start_batch=8))
    assert read == [1, 1]
    read.clear()
    list(clicks.loader("train", 32, start_batch=7, shuffle=True, window_rows=64))
    assert read == [2, 2]


def test_host_side_numbers_are_given(make_clicks):
    """What torchrec would otherwise ask the device for."""
    clicks, _ = make_clicks(100)
    sparse = next(iter(clicks.loader("train", 40))).sparse
    assert sparse.length_per_key_or_none() == sparse.lengths().view(4, 40).sum(1).tolist()
    features = tuple(feature for feature in clicks.schema.features if not feature.multi_hot)
    clicks.schema = dataclasses.replace(clicks.schema, features=features)
    one_hot = next(iter(clicks.loader("train", 40))).sparse
    assert one_hot.length_per_key_or_none() == [40, 40]
    assert one_hot.offsets().tolist() == list(range(81))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"batch_size": 8, "seed": -1}, "seed must be at least 0, not -1"),
        ({"batch_size": 8, "epoch": -1}, "epoch must be at least 0"),
        ({"batch_size": 8, "start_batch": 14}, "start_batch is 14, but train has 13 batches of 8"),
        ({"batch_size": 8, "start_batch": -1}, "start_batch is -1"),
        ({"batch_size": 8, "prefetch": -1}, "prefetch must be at least 0"),
        ({"batch_size": 8, "share": (2, 2)}, "share is .2, 2.: the part must be in"),
    ],
)
def test_bad_options(make_clicks, options, message):
    clicks, _ = make_clicks(100)
    with pytest.raises(DataError, match=message):
        clicks.loader("train", **options)
