"""Clicks with planted features: what says something, and what does not."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder

import data
from data.readers.planted import Config, generate


def test_sizes_run_from_three_to_the_largest_and_every_third_is_silent():
    config = Config()
    sizes = list(config.sizes.values())
    assert (len(sizes), sizes[0], sizes[-1]) == (26, 3, 1_000_000)
    assert sizes == sorted(sizes)
    assert config.silent == [f"f{k:02}" for k in range(25, 2, -3)]


def test_silent_features_are_independent_of_the_click_and_others_are_not():
    config = Config(num_rows=40_000, features=6, useless=2, largest=40, strength=1.0)
    clicks = generate(config)
    assert clicks["probability"].mean() == pytest.approx(config.click_rate, abs=1e-6)
    scores = {}
    for name in config.sizes:
        coded = OneHotEncoder(sparse_output=True).fit_transform(clicks[name].to_numpy()[:, None])
        half = len(clicks) // 2
        model = LogisticRegression(max_iter=200).fit(coded[:half], clicks["label"].to_numpy()[:half])
        chance = model.predict_proba(coded[half:])[:, 1]
        clicked = clicks["label"].to_numpy()[half:].astype(bool)
        scores[name] = np.log(np.where(clicked, chance, 1 - chance)).mean()
    prior = clicks["label"].to_numpy().mean()
    entropy = prior * np.log(prior) + (1 - prior) * np.log(1 - prior)
    gains = {name: score - entropy for name, score in scores.items()}
    assert all(gains[name] < 5e-4 for name in config.silent), gains
    assert all(gains[name] > 2e-3 for name in config.sizes if name not in config.silent), gains


def test_popular_ids_follow_the_power_law():
    config = Config(num_rows=60_000, features=3, useless=1, largest=500, exponent=1.2)
    counts = np.sort(np.bincount(generate(config)["f02"].to_numpy(), minlength=500))[::-1]
    law = np.arange(1.0, 501) ** -1.2
    assert counts[:5] / len(generate(config)) == pytest.approx(law[:5] / law.sum(), rel=0.1)


def test_it_is_a_data_set(tmp_path):
    clicks = data.load("planted", root=tmp_path, num_rows=2000, features=4, useless=1, largest=30)
    assert clicks.schema.feature_names == ["f00", "f01", "f02", "f03"]
    assert clicks.schema.label == "label"


def test_most_ids_of_the_heavy_tail_are_rare(tmp_path):
    clicks = data.load("heavy-tail", root=tmp_path, cache=tmp_path)
    counts = torch.cat([clicks.counts(name) for name in clicks.schema.feature_names])
    assert 0.8 < float((counts < 5).float().mean()) < 0.95
    held_out = [clicks.split(split).collect() for split in ("valid", "test")]
    for name in clicks.schema.feature_names:  # an id for each value that occurs, and no other
        seen = set(torch.nonzero(clicks.counts(name)).flatten().tolist())
        assert seen.union(*(set(rows[name]) for rows in held_out)) == set(range(len(clicks.counts(name))))


def test_impossible_numbers_are_refused():
    with pytest.raises(data.DataError, match="useless=3 of 4 features"):
        Config(features=4, useless=3)
    with pytest.raises(data.DataError, match="click_rate"):
        Config(click_rate=1.0)
