"""What `bench minhash` measures, on a small log."""

import numpy as np

from experiments.bench import minhash


class Log:
    def log(self, text: str) -> None:
        assert text == "40,000 interactions of 400 users and 40 items"


def test_the_pass_and_the_clustering_are_measured():
    rows = minhash.run(Log(), edges=40_000, hashes=2, compare=False)  # pyright: ignore
    name = "40,000 interactions, 400 users, 40 items, 2 hashes: "
    assert [(row.name.removeprefix(name), row.against) for row in rows] == [
        ("one pass", "1 processor second"),
        ("memory of the pass at its peak", "1 MB"),
        ("edges that are kept", "all interactions"),
        ("clustering into 44 rows by leiden", "1 processor second"),
        ("memory of the clustering at its peak", "1 MB"),
    ]
    assert 400 <= rows[2].ratio * 40_000 <= 2 * 440
    assert rows[0].ratio > 0


def test_interactions_are_drawn_in_files_of_one_size(monkeypatch):
    monkeypatch.setattr(minhash, "_BLOCK", 1500)
    blocks = list(minhash._blocks(4000, users=1000, items=1000))
    assert [len(block) for block in blocks] == [1500, 1500, 1000]
    users, items = (np.concatenate([block[name].to_numpy() for block in blocks]) for name in ("user_id", "item_id"))
    assert max(users.max(), items.max()) < 1000
    assert 0.6 < np.mean(users % 500 == items % 500) < 0.8  # within groups, and few by chance
