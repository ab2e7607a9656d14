from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embcomp.semantic_ids import RQVAE, ResidualKMeans, Tokenizer
from embcomp.semantic_ids import content as content_module
from embcomp.semantic_ids.content import Content

VECTORS = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))


def sources(folder: Path) -> list[tuple[Any, str | None]]:
    array = VECTORS.numpy()
    np.save(folder / "content.npy", array)
    lists = pl.Series("vector", array.tolist(), dtype=pl.List(pl.Float32))
    pl.DataFrame({"item": range(50), "vector": lists}).write_parquet(folder / "lists.parquet", row_group_size=7)
    arrays = pl.Series("vector", array, dtype=pl.Array(pl.Float32, 3))
    pl.DataFrame({"vector": arrays}).write_parquet(folder / "arrays.parquet")
    (folder / "parts").mkdir()  # as Spark leaves them
    (folder / "parts" / "_SUCCESS").touch()
    for start in (0, 20):
        part = folder / "parts" / f"part-{start}.parquet"
        pl.DataFrame({"vector": lists[start : start + 20 if start == 0 else None]}).write_parquet(part)
    mapped = np.load(folder / "content.npy", mmap_mode="r")
    np.save(folder / "swapped.npy", array.astype(">f8"))
    return [
        (VECTORS, None), (VECTORS.double(), None), (array, None), (mapped, None), (folder / "content.npy", None),
        (str(folder / "content.npy"), None), (folder / "lists.parquet", "vector"),
        (folder / "arrays.parquet", "vector"), (folder / "swapped.npy", None), (folder / "parts", "vector"),
    ]  # fmt: skip


def test_every_source_gives_the_same_blocks(tmp_path: Path) -> None:
    for source, column in sources(tmp_path):
        content = Content(source, column)
        assert (len(content), content.width) == (50, 3)
        blocks = list(content.blocks(8))
        assert all(block.dtype == torch.float32 for block in blocks)
        assert [block.shape[0] for block in blocks] == [8] * 6 + [2]  # so that shuffled blocks are the same
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


def test_half_precision_is_read_exactly(tmp_path: Path) -> None:
    half = VECTORS.half()
    np.save(tmp_path / "half.npy", half.numpy())
    flat = pa.array(half.numpy().ravel(), pa.float16())
    pq.write_table(pa.table({"v": pa.FixedSizeListArray.from_arrays(flat, 3)}), tmp_path / "half.parquet")
    for source, column in ((half, None), (tmp_path / "half.npy", None), (tmp_path / "half.parquet", "v")):
        assert torch.equal(torch.cat(list(Content(source, column).blocks())), half.float())


class Nowhere:
    """An array that no memory holds: rows are made when they are asked for."""

    dtype = np.dtype("float32")

    def __init__(self, rows: int, width: int) -> None:
        self.shape, self.most = (rows, width), 0

    def __getitem__(self, part: slice) -> np.ndarray:
        rows = np.arange(*part.indices(self.shape[0]))
        self.most = max(self.most, len(rows))
        return np.sin(np.outer(rows + 1, np.arange(1, self.shape[1] + 1) ** 2)).astype(np.float32)


@pytest.mark.parametrize(
    "tokenizer",
    [ResidualKMeans(2, 4), RQVAE(2, 4, latent_dim=4, hidden=(), epochs=1, batch_size=200)],
    ids=["ResidualKMeans", "RQVAE"],
)
def test_no_more_than_a_block_is_in_memory(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fit and encode, and where quality is judged."""
    monkeypatch.setattr(content_module, "BLOCK", 200)
    vectors = Nowhere(1500, 6)
    tokenizer.fit(vectors)
    assert tokenizer.baseline["items"] == 256 * 4  # of the sample that it is fitted on
    codes, found, drift = tokenizer.encode(vectors), tokenizer.quality(None, vectors), tokenizer.drift(vectors)
    assert vectors.most == 200
    whole = torch.from_numpy(vectors[0:1500])
    monkeypatch.undo()
    assert torch.equal(codes, tokenizer.encode(whole))
    assert str(found) == str(tokenizer.quality(codes, whole))
    assert drift.relative_error == pytest.approx(tokenizer.drift(whole).relative_error)


def test_a_row_group_need_not_fit_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_module, "READ", 1 << 14)
    values = pa.array(np.random.default_rng(0).normal(size=1 << 21).astype(np.float32))
    table = pa.table({"v": pa.FixedSizeListArray.from_arrays(values, 64)})
    pq.write_table(table, tmp_path / "one.parquet", row_group_size=1 << 15, use_dictionary=False)  # 8 MiB
    del table, values
    content = Content(tmp_path / "one.parquet", "v")
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in content.blocks(1000)]
    assert len(held) == 33
    assert max(held) < 4 << 20


def test_wide_vectors_come_in_smaller_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_module, "NUMBERS", 600)
    assert [block.shape[0] for block in Content(torch.ones(10, 200)).blocks()] == [3, 3, 3, 1]
    assert [block.shape[0] for block in Content(torch.ones(2, 1000)).blocks()] == [1, 1]


def with_row(value: float) -> torch.Tensor:
    vectors = VECTORS.clone()
    vectors[37] = value
    return vectors


MAKERS = {
    "ResidualKMeans": lambda: ResidualKMeans(2, 4),
    "RQVAE": lambda: RQVAE(2, 4, latent_dim=2, hidden=(), epochs=1),
}


@pytest.mark.parametrize("kind", MAKERS)
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
def test_bad_content_is_named(kind: str, wrong: Any, message: str) -> None:
    tokenizer = MAKERS[kind]()
    with pytest.raises(ValueError, match=message):
        tokenizer.fit(wrong)
    assert not tokenizer.fitted


@pytest.mark.parametrize("kind", MAKERS)
def test_bad_content_is_named_when_it_is_encoded_or_judged(kind: str) -> None:
    tokenizer = MAKERS[kind]().fit(VECTORS)
    codes = tokenizer.encode(VECTORS)
    for width in (1, 2, 6):
        for judge in (tokenizer.drift, lambda content: tokenizer.quality(codes, content)):
            with pytest.raises(ValueError, match=f"vectors are {width} wide, but the tokenizer was fitted on 3"):
                judge(torch.ones(50, width))
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
    with pytest.raises(ValueError, match=r"null.parquet: row 1 has no vector; leave out items without content"):
        list(Content(tmp_path / "null.parquet", "v").blocks())
    pl.DataFrame({"v": [None, [1.0, 2.0], [1.0, None]]}).write_parquet(tmp_path / "first.parquet")
    with pytest.raises(ValueError, match=r"first.parquet: row 0 has no vector"):
        list(Content(tmp_path / "first.parquet", "v").blocks())
    pl.DataFrame({"v": [[1.0, 2.0], [1.0, None]]}).write_parquet(tmp_path / "hole.parquet")
    with pytest.raises(ValueError, match=r"hole.parquet: vector 1 is NaN"):
        list(Content(tmp_path / "hole.parquet", "v").blocks())


@pytest.mark.parametrize("name", ["content.npy", "lists.parquet"])
def test_damaged_files_are_named(name: str, tmp_path: Path) -> None:
    sources(tmp_path)
    path = tmp_path / name
    column = "vector" if path.suffix == ".parquet" else None
    data = path.read_bytes()
    for wrong in (b"", b"no vectors at all", data[: len(data) // 2]):
        path.write_bytes(wrong)
        with pytest.raises(
            ValueError, match=rf"{name} is (damaged, or not|empty|no parquet file|not a parquet file|cut short)"
        ):
            Content(path, column)
    if column:  # the footer is whole, the values are not
        path.write_bytes(data[:4] + bytes(len(data) // 2) + data[4 + len(data) // 2 :])
        with pytest.raises(ValueError, match=rf"{name} is damaged, or not a parquet file"):
            list(Content(path, column).blocks())
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
        Content(path, column)
