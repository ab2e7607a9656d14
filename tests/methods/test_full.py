import pytest
import torch
from torch import nn

from embcomp import Full, Table
from embcomp.nn import CompressedEmbedding, CompressedEmbeddingBag


def test_it_is_an_embedding() -> None:
    plain = nn.Embedding(30, 5, padding_idx=4)
    full = CompressedEmbedding(30, 5, Full(), padding_idx=4)
    full.stores[0].weight.data = plain.weight.data
    ids = torch.randint(30, (4, 6))
    assert torch.equal(full(ids), plain(ids))
    full(ids).square().sum().backward()
    plain(ids).square().sum().backward()
    assert torch.equal(full.stores[0].weight.grad, plain.weight.grad)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("padding", [None, 4, -1])
def test_it_is_an_embedding_bag(mode: str, last: bool, padding: int | None) -> None:
    settings = {"mode": mode, "include_last_offset": last, "padding_idx": padding}
    plain, full = nn.EmbeddingBag(30, 5, **settings), CompressedEmbeddingBag(30, 5, Full(), **settings)
    full.stores[0].weight.data = plain.weight.data
    ids, offsets = torch.randint(3, 6, (9,)), torch.tensor([0, 2, 2, 5, 9][: 5 if last else 4])
    torch.testing.assert_close(full(ids, offsets), plain(ids, offsets))
    full(ids, offsets).square().sum().backward()
    plain(ids, offsets).square().sum().backward()
    torch.testing.assert_close(full.stores[0].weight.grad, plain.weight.grad)


def test_its_budget_is_the_whole_table() -> None:
    tables = [Table("a", 10, 4), Table("b", 7, 2)]
    assert isinstance(Full.for_budget(tables, 4 * (40 + 14)), Full)
    with pytest.raises(ValueError, match=r"215 bytes is too small.*216 bytes"):
        Full.for_budget(tables, 215)
    with pytest.raises(ValueError, match="table 'c': Full needs num_embeddings"):
        Full().plan([Table("c", None, 4)])
