import math
from collections import Counter

import pytest

import data
from data import DataError


def rows_of(path):
    """The file, read field by field."""
    for line in path.read_text().splitlines():
        fields = line.split("\t")
        assert len(fields) == 40
        yield int(fields[0]), fields[1:14], fields[14:]


@pytest.mark.dataset("criteo_sample")
def test_equals_a_plain_reading(dataset, tmp_path):
    clicks = data.load("criteo", folder=dataset, cache=tmp_path, split="time", min_count=3)
    rows = list(rows_of(dataset / "train.txt"))
    train, encoded = rows[:8000], clicks.split("train").collect()
    assert [clicks.num_rows(split) for split in clicks.splits] == [8000, 1000, 1000]
    assert encoded["label"].to_list() == [label for label, _, _ in train]
    for i, name in enumerate(clicks.schema.dense):
        expected = [math.log1p(max(int(dense[i] or 0), 0)) for _, dense, _ in train]
        assert encoded[name].to_list() == pytest.approx(expected, rel=1e-6)
    for i, feature in enumerate(clicks.schema.features):
        counts = Counter(categories[i] for _, _, categories in train)
        vocabulary = {value: n + 1 for n, value in enumerate(sorted(v for v, count in counts.items() if count >= 3))}
        assert feature.num_embeddings == len(vocabulary) + 1
        for split, part in {"train": train, "valid": rows[8000:9000], "test": rows[9000:]}.items():
            expected = [vocabulary.get(categories[i], 0) for _, _, categories in part]
            assert clicks.split(split).collect()[feature.name].to_list() == expected
        assert clicks.vocabulary(feature.name).to_list() == [None, *vocabulary]


@pytest.mark.dataset("criteo_sample")
def test_raw_ids_are_the_hexadecimal_numbers(dataset, tmp_path):
    clicks = data.load("criteo", folder=dataset, cache=tmp_path, split="time", ids="raw")
    encoded = clicks.split("train").collect()
    rows = list(rows_of(dataset / "train.txt"))[:8000]
    for i, feature in enumerate(clicks.schema.features):
        assert feature.num_embeddings is None
        expected = [int(categories[i], 16) if categories[i] else 2**32 for _, _, categories in rows]
        assert encoded[feature.name].to_list() == expected
    batch = next(iter(clicks.loader("train", 16)))
    assert batch.sparse.values()[:16].tolist() == encoded["C1"].head(16).to_list()


LINE = "\t".join(["1", *["2"] * 13, *["00ff00ff"] * 26])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE + "\t", r"train\.txt:12: 41 fields, not 40"),
        (LINE.replace("1\t2", "1\tx", 1), r"train\.txt:12: I1 is 'x', not Int64"),
        (LINE.replace("1", "", 1), "column 'label' is None in row 11"),
        (LINE.replace("1", "2", 1), "column 'label' is 2 in row 11"),
        (LINE[:-8] + "pp", "column 'C26' is None in row 11"),
    ],
)
def test_malformed_lines(tmp_path, line, message):
    (tmp_path / "train.txt").write_text("\n".join([LINE] * 11 + [line] * 9) + "\n")
    with pytest.raises(DataError, match=message):
        data.load("criteo", folder=tmp_path, cache=tmp_path / "cache", ids="raw")
