"""A small set of news clicks in the form of Globo's."""

from pathlib import Path

import numpy as np
import polars as pl

HOUR = 3_600_000
CONTEXT = ("environment", "deviceGroup", "os", "country", "region", "referrer_type")


def write_clicks(folder: Path) -> None:
    """400 clicks of 20 readers in 20 hours on 12 articles with vectors, and one without; in the last hour on one alone.

    Article 100 is 30 hours old at the beginning, 101 is made in hour 18, nothing is known of the others' age.
    """
    rng = np.random.default_rng(0)
    hour = np.repeat(np.arange(20), 20)
    article = rng.integers(100, 113, 400)
    article[hour == 19] = 100
    frame = {"user_id": rng.integers(0, 20, 400), "click_article_id": article, "click_timestamp": hour * HOUR}
    clicks = pl.DataFrame(frame | {f"click_{name}": rng.integers(1, 4, 400) for name in CONTEXT})
    clicks = clicks.cast({"click_article_id": pl.Int32}).sample(fraction=1, shuffle=True, seed=0)
    clicks.write_parquet(folder / "clicks.parquet")
    born = {"article_id": [100, 101], "created_at_ts": [-30 * HOUR, 18 * HOUR]}
    pl.DataFrame(born).write_parquet(folder / "articles.parquet")
    ids = np.arange(111, 99, -1, dtype=np.int32)
    vectors = ids[:, None] * np.ones((1, 3), np.float32)
    np.savez(folder / "article_embeddings.npz", article_id=ids, embedding=vectors)
