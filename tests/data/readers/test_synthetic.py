"""What the generator says it plants is there."""

import doctest

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.neighbors import NearestCentroid

import data
from data import DataError
from data.readers import synthetic
from data.readers.synthetic import Config, generate


@pytest.fixture(scope="module")
def clicks():
    return generate(Config(num_rows=200_000, seed=1))


def test_docstring():
    assert doctest.testmod(synthetic).failed == 0


@pytest.mark.parametrize("exponent", [0.8, 1.2])
def test_item_counts_follow_the_power_law(exponent):
    config = Config(num_rows=200_000, num_items=1000, new_items=0, focus=0, item_exponent=exponent)
    clicks = generate(config)
    counts = np.bincount(clicks.rows["item"], minlength=1000)
    rank = clicks.truth["item_rank"]
    # Maximum likelihood over a grid: sum over items of count * log P(rank).
    grid = np.linspace(0.5, 1.5, 201)
    fit = [-(a * np.log(rank) * counts).sum() - counts.sum() * np.log((rank**-a).sum()) for a in grid]
    assert grid[np.argmax(fit)] == pytest.approx(exponent, abs=0.011)


def test_user_counts_follow_the_power_law(clicks):
    config = Config(num_rows=200_000, seed=1)
    counts = np.bincount(clicks.rows["user"], minlength=config.num_users)
    weight = clicks.truth["user_rank"] ** -config.user_exponent
    expected = config.num_rows * weight / weight.sum()
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - config.num_users) < 6 * (2 * config.num_users) ** 0.5


def test_new_items_appear_after_their_birth_only(clicks):
    birth = clicks.truth["item_birth"]
    assert 0.15 < (birth > 0).mean() < 0.25
    assert (clicks.rows["time"].to_numpy() >= birth[clicks.rows["item"]]).all()
    assert clicks.rows["age"].to_numpy() == pytest.approx(clicks.rows["time"] - birth[clicks.rows["item"]])
    # They are drawn as others of their rank once they are there.
    late = clicks.rows.filter(pl.col("time") > 0.9)["item"].to_numpy()
    here = birth < 0.9
    weight = here / clicks.truth["item_rank"]
    new_share = (weight * (birth > 0)).sum() / weight.sum()
    assert (birth[late] > 0).mean() == pytest.approx(new_share, abs=0.05)


def community_at(truth, rows) -> np.ndarray:
    user = rows["user"].to_numpy()
    moved = rows["time"].to_numpy() >= truth["user_move"][user]
    return np.where(moved, truth["user_community_after"][user], truth["user_community"][user])


def test_users_meet_and_like_items_of_their_community(clicks):
    rows, truth = clicks.rows, clicks.truth
    same = community_at(truth, rows) == truth["item_community"][rows["item"]]
    assert same.mean() > 0.5  # focus = .5, and some of the rest
    label = rows["label"].to_numpy()
    assert label[same].mean() > 2 * label[~same].mean()
    assert roc_auc_score(label, same) > 0.65


def test_users_move(clicks):
    truth, rows = clicks.truth, clicks.rows
    moved = np.isfinite(truth["user_move"])
    assert 0.07 < moved.mean() < 0.13
    assert (truth["user_community"] != truth["user_community_after"]).tolist() == moved.tolist()
    after = rows["time"].to_numpy() > truth["user_move"][rows["user"]]
    item, user = truth["item_community"][rows["item"]], rows["user"].to_numpy()
    assert (item == truth["user_community_after"][user])[after].mean() > 0.5
    assert (item == truth["user_community"][user])[after].mean() < 0.2


def test_oracle(clicks):
    rows = clicks.rows
    label, probability = rows["label"].to_numpy(), rows["probability"].to_numpy()
    assert probability.mean() == pytest.approx(0.25, abs=1e-6)
    # Calibrated: in each tenth the rate of clicks is the mean probability.
    order = np.argsort(probability)
    for part in np.array_split(order, 10):
        deviation = (probability[part] * (1 - probability[part])).sum() ** 0.5 / len(part)
        assert abs(label[part].mean() - probability[part].mean()) < 5 * deviation
    # A model that is given the true logit of everything but the labels is no better.
    logit = np.log(probability / (1 - probability))
    features = np.column_stack([logit, rows["hour"], rows["device"], rows["age"]])
    model = LogisticRegression().fit(features[:150_000], label[:150_000])
    fitted = model.predict_proba(features[150_000:])[:, 1]
    assert roc_auc_score(label[150_000:], fitted) < roc_auc_score(label[150_000:], probability[150_000:]) + 1e-3
    assert log_loss(label[150_000:], fitted) > log_loss(label[150_000:], probability[150_000:]) - 1e-3


def test_score_is_the_written_formula(clicks):
    rows, truth = clicks.rows, clicks.truth
    item, user = rows["item"].to_numpy(), rows["user"].to_numpy()
    probability, birth = rows["probability"].to_numpy(), truth["item_birth"][item]
    known = truth["affinity"][community_at(truth, rows), truth["item_community"][item]]
    known = known + truth["user_effect"][user] + truth["item_effect"][item]
    known += 0.3 * np.sin(2 * np.pi * rows["hour"].to_numpy() / 24)
    known += 0.5 * np.exp(-(rows["time"].to_numpy() - birth) / 0.05) * (birth > 0)
    rest = np.log(probability / (1 - probability)) - known
    for device in range(4):  # bias + effect of the device
        assert np.ptp(rest[rows["device"].to_numpy() == device]) < 1e-9


def test_content_says_community_and_topic(clicks):
    truth, content = clicks.truth, clicks.content
    assert content.dtype == np.float32
    train, test = np.arange(0, 4000, 2), np.arange(1, 4000, 2)
    for target, at_least in [("item_community", 0.95), ("item_topic", 0.6)]:
        model = NearestCentroid().fit(content[train], truth[target][train])
        assert model.score(content[test], truth[target][test]) > at_least
    assert (truth["item_topic"] // 5 == truth["item_community"]).all()
    # Half of the variance of an item's effect is that of its topic.
    effect = pl.DataFrame({"topic": truth["item_topic"], "effect": truth["item_effect"]})
    within = effect.select(pl.col("effect") - pl.col("effect").mean().over("topic")).to_series().var()
    assert within == pytest.approx(0.7**2 / 2, rel=0.1)


def test_ids_say_nothing(clicks):
    for name in ("item_rank", "item_birth", "item_community"):
        assert abs(np.corrcoef(np.arange(4000), clicks.truth[name])[0, 1]) < 0.06


def test_seed():
    a, b, c = (generate(Config(num_rows=2000, seed=seed)) for seed in (3, 3, 4))
    assert a.rows.equals(b.rows)
    assert (a.content == b.content).all()
    assert not a.rows.equals(c.rows)
    longer = generate(Config(num_rows=3000, seed=3))
    assert all((longer.truth[name] == a.truth[name]).all() for name in a.truth)


def test_load(tmp_path):
    clicks = data.load("synthetic", cache=tmp_path, num_rows=5_000, tags=True, seed=2)
    assert [feature.num_embeddings for feature in clicks.schema.features] == [6000, 4000, 4, 24, 100]
    generated = generate(Config(num_rows=5_000, tags=True, seed=2))
    train = clicks.split("train").collect()
    assert len(train) == 4000
    for name in ("user", "item", "tags", "label"):
        assert train[name].to_list() == generated.rows[name].head(4000).to_list()
    assert clicks.content("item").numpy().tolist() == generated.content.tolist()
    assert clicks.truth().keys() == generated.truth.keys()
    assert (clicks.truth()["item_topic"] == generated.truth["item_topic"]).all()
    batch = next(iter(clicks.loader("test", 100)))
    assert batch.columns.keys() == {"user", "time", "probability"}
    assert batch.columns["time"].min() > 0.85
    by_item = train.group_by("item").agg(pl.col("tags").n_unique())
    assert by_item["tags"].max() == 1
    lengths = train["tags"].list.len()
    assert set(lengths.unique()) == {0, 1, 2, 3}
    topic = generated.truth["item_topic"][train["item"]]
    first = train["tags"].list.first().to_numpy()
    assert ((first == topic) | np.isnan(first)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rows": 0}, "num_rows must be at least 1, not 0"),
        ({"num_communities": 1}, "num_communities must be at least 2, not 1"),
        ({"num_users": 10}, "num_users must be at least 20, not 10"),
        ({"drift": 1.5}, r"drift must be between 0 and 1, not 1\.5"),
        ({"click_rate": 0}, "click_rate must be above 0 and below 1, not 0"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(DataError, match=message):
        Config(**options)
