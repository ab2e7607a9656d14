from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from embcomp.semantic_ids import ResidualKMeans
from embcomp.semantic_ids.content import Content

VECTORS = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))


def sources(folder: Path) -> list[tuple[Any, str | None]]:
    array = VECTORS.numpy()
    np.save(folder / "content.npy", array)
    lists = pl.Series("vector", array.tolist(), dtype=pl.List(pl.Float32))
    pl.DataFrame({"item": range(50), "vector": lists}).write_parquet(folder / "lists.parquet", row_group_size=7)
    arrays = pl.Series("vector", array, dtype=pl.Array(pl.Float32, 3))
    pl.DataFrame({"vector": arrays}).write_parquet(folder / "arrays.parquet")
    mapped = np.load(folder / "content.npy", mmap_mode="r")
    return [
        (VECTORS, None), (VECTORS.double(), None), (array, None), (mapped, None), (folder / "content.npy", None),
        (str(folder / "content.npy"), None), (folder / "lists.parquet", "vector"),
        (folder / "arrays.parquet", "vector"),
    ]  # fmt: skip


def test_every_source_gives_the_same_blocks(tmp_path: Path) -> None:
    for source, column in sources(tmp_path):
        content = Content(source, column)
        assert (len(content), content.width) == (50, 3)
        blocks = list(content.blocks(8))
        assert all(block.dtype == torch.float32 and block.shape[0] <= 8 for block in blocks)
        assert torch.equal(torch.cat(blocks), VECTORS)
        sample = content.sample(9, seed=3)
        assert torch.equal(sample, Content(VECTORS).sample(9, seed=3))
        assert sample.unique(dim=0).shape == (9, 3)
        assert (sample.unsqueeze(1) == VECTORS).all(2).any(1).all()


def test_tokenizers_read_blocks_from_disk(tmp_path: Path) -> None:
    expected = ResidualKMeans(2, 4).fit(VECTORS).encode(VECTORS)
    for source, column in sources(tmp_path)[3:]:
        tokenizer = ResidualKMeans(2, 4).fit(source, column=column)
        assert torch.equal(tokenizer.encode(source, column=column), expected)


def with_row(value: float) -> torch.Tensor:
    vectors = VECTORS.clone()
    vectors[37] = value
    return vectors


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (with_row(float("nan")), "vector 37 is NaN or infinite"),
        (with_row(float("inf")), "vector 37 is NaN or infinite"),
        (with_row(0.0), "vector 37 is all zeros; leave out items without content"),
        (VECTORS.long(), "vectors must be floats, got torch.int64"),
        (VECTORS.numpy().astype(np.int8), "vectors must be floats, got int8"),
        (VECTORS[0], r"expected vectors \[N, width\], got shape \[3\]"),
        (VECTORS[:0], r"holds no vectors \(shape \[0, 3\]\)"),
        ([[1.0]], "expected a tensor, an array or a path, got list"),
        (VECTORS[:3], "3 items are fewer than codebook_size 4"),
        (VECTORS[:1].expand(20, 3), "there are only 1 different vectors for 4 codes"),
        ("content.csv", "content.csv: content files end in .npy or .parquet"),
    ],
)
def test_bad_content_is_named(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResidualKMeans(2, 4).fit(wrong)


def test_bad_content_is_named_when_it_is_encoded() -> None:
    tokenizer = ResidualKMeans(2, 4).fit(VECTORS)
    for wrong, message in (
        (with_row(float("nan")), "vector 37 is NaN"),
        (with_row(0.0), "vector 37 is all zeros"),
        (torch.cat([VECTORS, VECTORS], 1), "vectors are 6 wide, but the tokenizer was fitted on 3"),
        (VECTORS.int(), "must be floats"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer.encode(wrong)


def test_bad_files_are_named(tmp_path: Path) -> None:
    sources(tmp_path)
    path = tmp_path / "lists.parquet"
    for column in (None, "vectors"):
        with pytest.raises(
            ValueError, match=r"lists.parquet: give the column of the vectors, one of \['item', 'vector'\]"
        ):
            Content(path, column)
    with pytest.raises(ValueError, match="column 'item' must hold lists of floats, got int64"):
        Content(path, "item")
    with pytest.raises(ValueError, match="only parquet files have a column"):
        Content(VECTORS, "vector")
    pl.DataFrame({"v": [[1.0, 2.0], [1.0], [3.0, 4.0]]}).write_parquet(tmp_path / "ragged.parquet")
    with pytest.raises(ValueError, match=r"ragged.parquet: row 1 has 1 values, expected 2"):
        list(Content(tmp_path / "ragged.parquet", "v").blocks())
    pl.DataFrame({"v": [[1.0, 2.0], None]}).write_parquet(tmp_path / "null.parquet")
    with pytest.raises(ValueError, match=r"null.parquet: row 1 has 0 values, expected 2"):
        list(Content(tmp_path / "null.parquet", "v").blocks())
