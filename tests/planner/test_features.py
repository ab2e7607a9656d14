"""`rank_features` beside entropies in plain Python, labels dealt by a shuffle, and what was planted."""

import json
import math
import sys
from collections import Counter, defaultdict

import numpy as np
import polars as pl
import pytest

import embcomp
from embcomp.planner.features_ranking import FeatureRanking

ROWS = 600


def conditional_entropy(values, labels) -> float:
    """H(Y | X), bits a row."""
    groups = defaultdict(Counter)
    for value, label in zip(values, labels, strict=True):
        groups[value][label] += 1
    total = 0.0
    for counts in groups.values():
        size = sum(counts.values())
        total -= sum(count * math.log2(count / size) for count in counts.values())
    return total / len(labels)


@pytest.fixture(scope="module")
def small() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    few, many = rng.integers(4, size=ROWS), rng.zipf(1.4, ROWS)
    label = rng.random(ROWS) < 0.1 + 0.1 * few
    text = np.array(["a", "b", "c"])[rng.integers(3, size=ROWS)]
    columns = {"few": few, "many": many, "text": text, "constant": np.zeros(ROWS), "row": np.arange(ROWS)}
    frame = pl.DataFrame(columns | {"label": label.astype(np.int8)})
    return frame.with_columns(pl.when(pl.col("few") > 0).then("few").alias("few"))  # 0 is missing


def test_scores_are_entropies_less_those_of_shuffled_labels(small):
    ranking = embcomp.rank_features(small)
    labels = small["label"].to_list()
    rng, draws = np.random.default_rng(1), 400
    shuffled = [rng.permutation(labels).tolist() for _ in range(draws)]
    for score in ranking.features:
        values = small[score.feature].to_list()
        noise = [conditional_entropy(values, each) for each in shuffled]
        error = 4 * np.std(noise) / math.sqrt(draws) + 1e-9
        expected = np.mean(noise) - conditional_entropy(values, labels)
        assert score.score == pytest.approx(expected, abs=error), score
        assert score.values == len(set(values))
        if np.std(noise) > 1e-9:  # the deviation that sureness is counted in, of the groups that are many
            z = expected / np.std(noise)
            assert score.sureness == pytest.approx(z, abs=0.5) or min(score.sureness, z) > 4
    assert ranking.entropy == pytest.approx(conditional_entropy([0] * ROWS, labels))
    assert ranking.scores["constant"] == pytest.approx(0, abs=1e-9)
    assert ranking.scores["row"] == pytest.approx(0, abs=1e-9)  # values seen once
    assert next(iter(ranking.scores)) == "few"
    assert set(ranking.useless) == {"many", "text", "constant", "row"}


def test_a_gain_is_information_within_values_less_that_of_labels_shuffled_within_them(small):
    pair = next(p for p in embcomp.rank_features(small, pairs=99).pairs if set(p.features) == {"few", "text"})
    few, text, labels = (small[name].to_list() for name in ("few", "text", "label"))
    cells = list(zip(few, text, strict=True))
    rng, noise, alone = np.random.default_rng(2), [], []
    for _ in range(400):
        dealt = np.array(labels)
        for value in set(few):
            rows = [row for row in range(ROWS) if few[row] == value]
            dealt[rows] = rng.permutation(dealt[rows])
        noise.append(conditional_entropy(cells, dealt.tolist()))
        alone.append(conditional_entropy(text, rng.permutation(labels).tolist()))
    expected = np.mean(noise) - conditional_entropy(cells, labels)
    expected -= np.mean(alone) - conditional_entropy(text, labels)
    assert pair.gain == pytest.approx(expected, abs=4 * (np.std(noise) + np.std(alone)) / 20)
    assert pair.values == len(set(cells))


def test_noise_is_named_useless_at_the_rate_that_is_said():
    """Scores of noise in their standard deviations, over partitions of all kinds: mean 0, deviation 1, few beyond 3."""
    rng = np.random.default_rng(3)
    features = {f"{k}.{i}": rng.integers(k, size=5000) for k in (2, 3, 10, 300, 3000) for i in range(25)}
    features |= {f"zipf.{i}": rng.zipf(1.3, 5000) for i in range(25)}
    ranking = embcomp.rank_features(pl.DataFrame(features).with_columns(label=rng.random(5000) < 0.07))
    assert len(ranking.useless) >= len(features) - 2
    for kind in ("2", "3", "10", "300", "3000", "zipf"):
        found = np.array([score.sureness for score in ranking.features if score.feature.split(".")[0] == kind])
        assert abs(found.mean()) < 3.5 / math.sqrt(25), kind
        assert 0.6 < found.std() < 1.5, kind


@pytest.fixture(scope="module")
def planted() -> pl.DataFrame:
    rng = np.random.default_rng(4)
    rows = 40_000
    user, left, right = rng.integers(3000, size=rows), rng.integers(2, size=rows), rng.integers(2, size=rows)
    weak = rng.integers(5, size=rows)
    score = -1 + 0.8 * rng.standard_normal(3000)[user] + 0.1 * (weak - 2) + 0.8 * (left ^ right)
    return pl.DataFrame(
        {
            "user": user,
            "city": user // 30,
            "weak": weak,
            "left": left,
            "right": right,
            "noise": rng.integers(20_000, size=rows),
            "label": rng.random(rows) < 1 / (1 + np.exp(-score)),
        }
    )


def test_useless_and_weak_features_are_told_apart(planted):
    ranking = embcomp.rank_features(planted, features=["user", "city", "weak", "noise"])
    assert ranking.useless == ["noise"]
    assert 1e-4 < ranking.scores["weak"] / ranking.entropy < 0.01
    assert "noise" in ranking.advice
    assert "Drop" in ranking.advice
    redundant = {score.feature: score.redundant_with for score in ranking.features}
    assert redundant == {"user": None, "city": "user", "weak": None, "noise": None}
    table = str(ranking)
    last = {line.split()[0]: line.split()[-1] for line in table.splitlines() if line.startswith(("noise", "weak"))}
    assert last == {"weak": "no", "noise": "yes"}


def test_pairs_find_a_planted_exclusive_or(planted):
    alone = embcomp.rank_features(planted)
    assert {"left", "right"} <= {*alone.useless}
    ranking = embcomp.rank_features(planted, pairs=3)
    assert len(ranking.pairs) == 3
    assert ranking.pairs[0].features == ("left", "right")
    assert ranking.pairs[0].sureness > 100 * ranking.pairs[1].sureness
    assert ranking.useless == ["noise"]
    assert "left x right" in str(ranking)


def test_labels_that_are_even_by_design_are_not_called_useless():
    user = np.repeat(np.arange(500), 4)  # one click and three drawn negatives for each user
    frame = pl.DataFrame({"user": user, "label": np.tile([1, 0, 0, 0], 500)})
    ranking = embcomp.rank_features(frame)
    assert ranking.useless == []
    assert ranking.features[0].even
    assert "No advice on user" in str(ranking)


def test_files_in_parts_are_one_log(planted, tmp_path):
    planted.write_parquet(tmp_path / "whole.parquet")
    (tmp_path / "log").mkdir()
    for part in range(3):
        planted[part * 15_000 : (part + 1) * 15_000].write_parquet(tmp_path / "log" / f"{part}.parquet")
    names = ["user", "left", "right"]
    whole = embcomp.rank_features(tmp_path / "whole.parquet", features=names, pairs=5)
    several = [str(file) for file in sorted((tmp_path / "log").iterdir())]
    for source in (tmp_path / "log", str(tmp_path / "log" / "*.parquet"), several, planted, planted.lazy()):
        assert embcomp.rank_features(source, features=names, pairs=5) == whole


def test_batches_and_merges_change_nothing(planted, monkeypatch):
    names = ["user", "left", "noise"]
    whole = embcomp.rank_features(planted, features=names, pairs=5)
    monkeypatch.setattr("embcomp.planner.features_read.BATCH", 3000)
    assert embcomp.rank_features(planted, features=names, pairs=5) == whole


def test_a_bound_on_memory_gives_estimates(planted, monkeypatch):
    monkeypatch.setattr("embcomp.planner.features_read.BATCH", 20_000)
    whole = embcomp.rank_features(planted)
    found = [embcomp.rank_features(planted, max_values=2500, seed=seed) for seed in range(5)]
    scores = [{score.feature: score for score in ranking.features} for ranking in found]
    for name in ("weak", "left", "right", "city"):
        assert all(each[name].exact for each in scores)
    assert not any(each[name].exact for each in scores for name in ("user", "noise"))
    assert all("noise" in ranking.useless and "~" in str(ranking) for ranking in found)
    users = np.array([each["user"].score for each in scores])
    assert users.mean() == pytest.approx(whole.scores["user"], abs=4 * users.std() / math.sqrt(5))
    assert users.std() < whole.scores["user"] / 4
    assert np.mean([each["noise"].values for each in scores]) == pytest.approx(planted["noise"].n_unique(), rel=0.1)


def test_rankings_are_saved_as_json(planted, tmp_path):
    ranking = embcomp.rank_features(planted, pairs=True)
    ranking.save(tmp_path / "features.json")
    assert FeatureRanking.load(tmp_path / "features.json") == ranking
    assert json.loads((tmp_path / "features.json").read_text())["label"] == "label"
    (tmp_path / "other.json").write_text('{"rows": 3}')
    with pytest.raises(ValueError, match=r"other\.json holds no ranking"):
        FeatureRanking.load(tmp_path / "other.json")


CLICKS = {"user": [1, 2, 1, 2], "price": [0.5, 1.5, 0.5, 0.5], "label": [0, 1, 1, 0]}


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({}, {"label": "lable"}, "label='lable' is not a column; did you mean 'label'"),
        ({}, {"label": "zzz"}, "there are 'user', 'price', 'label'"),
        ({}, {"features": ["usr"]}, "features: 'usr' is not a column; did you mean 'user'"),
        ({}, {"features": []}, "no features"),
        ({}, {"features": "user"}, r"write \['user'\]"),
        ({}, {"features": ["user", "label"]}, "holds the label 'label' itself"),
        ({"label": [1, 1, 1, 1]}, {}, "all 4 labels of 'label' are 1.*both classes"),
        ({"label": [1, 4, 1, 5]}, {}, "label 'label' holds 4, not only 0 and 1.*>= 4"),
        ({"label": [0.0, math.nan, 1.0, 0.0]}, {}, "label 'label' holds nan"),
        ({"label": [0, None, 1, 1]}, {}, "1 labels of 'label' are missing.*drop_nulls"),
        ({"label": ["no", "yes", "no", "no"]}, {}, "label 'label' is String.*== 'yes'"),
        ({"price": [0.5, math.nan, 1.0, 1.0]}, {}, r"column 'price' holds NaN.*fill_nan\(None\)"),
        ({"price": [[1], [2, 3], [], [1]]}, {}, r"column 'price' is nested \(List\(Int64\)\).*list\.first\(\)"),
        ({}, {"pairs": -1}, "pairs=-1 must be a number"),
        ({}, {"least": 2}, "least=2 must be a share"),
        ({}, {"max_values": 0}, "max_values=0 must be an integer of at least 1024"),
    ],
)
def test_bad_input_is_named(columns, options, said, tmp_path):
    frame = pl.DataFrame(CLICKS | columns)
    frame.write_parquet(tmp_path / "clicks.parquet")
    for source in (frame, tmp_path / "clicks.parquet"):
        with pytest.raises(ValueError, match=f"(?s)rank_features: .*{said}"):
            embcomp.rank_features(source, **options)


def test_sources_that_hold_nothing_are_named(tmp_path):
    frame = pl.DataFrame(CLICKS)
    with pytest.raises(ValueError, match="holds no rows"):
        embcomp.rank_features(frame.clear())
    with pytest.raises(ValueError, match="no features: there is no column but the label"):
        embcomp.rank_features(frame.select("label"))
    with pytest.raises(ValueError, match="got dict"):
        embcomp.rank_features(CLICKS)
    (tmp_path / "empty.parquet").touch()
    with pytest.raises(ValueError, match=r"empty\.parquet is empty"):
        embcomp.rank_features(tmp_path / "empty.parquet")
    with pytest.raises(FileNotFoundError, match="none"):
        embcomp.rank_features(tmp_path / "none-*.parquet")


def test_columns_may_be_called_anything():
    rng = np.random.default_rng(5)
    names = ["rows", "positives", "whole", "dealt", "order", "len", "key", "literal"]
    frame = pl.DataFrame({name: rng.integers(9, size=500) for name in names} | {"y": rng.integers(2, size=500)})
    plain = frame.rename({name: f"f{at}" for at, name in enumerate(names)})
    ours, theirs = (embcomp.rank_features(each, label="y", pairs=40) for each in (frame, plain))
    assert [*ours.scores.values()] == [*theirs.scores.values()]
    assert len(ours.pairs) == 28
    assert [pair.gain for pair in ours.pairs] == [pair.gain for pair in theirs.pairs]


def test_kinds_of_columns_do_not_matter():
    rng = np.random.default_rng(6)
    value = rng.integers(5, size=400)
    frame = pl.DataFrame({"int": value, "label": rng.random(400) < 0.2 * value}).with_columns(
        pl.col("int").cast(pl.String).alias("text"),
        pl.col("int").cast(pl.String).cast(pl.Categorical).alias("category"),
        (pl.col("int") / 4).alias("float"),
        pl.date(2026, 1, 1 + pl.col("int")).alias("date"),
    )
    scores = embcomp.rank_features(frame).scores
    assert len(scores) == 5
    assert len({round(score, 12) for score in scores.values()}) == 1


def test_where_polars_is_missing_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ModuleNotFoundError, match=r"rank_features: .*pip install .*\[graph\]"):
        embcomp.rank_features("clicks.parquet")
