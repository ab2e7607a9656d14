"""ROBE: vectors by hand from one flat array, at any place, the array wrapping; a sound start."""

import pytest
import torch
from torch import nn

import embcomp
from embcomp import ROBE, LowBit, Table
from embcomp.nn import CompressedEmbedding
from embcomp.ops.hashing import hash_key, hash_rows_reference

N, D = 500, 24


def by_hand(array: torch.Tensor, ids: torch.Tensor, block: int, seed: int, name: str = "embedding") -> torch.Tensor:
    """The formula, entry by entry, from the flat array."""
    blocks = D // block
    keys = torch.tensor([hash_key(seed, name, j) for j in range(2 * blocks)])
    places = hash_rows_reference(ids, keys[:blocks], array.numel())
    signs = 2 * hash_rows_reference(ids, keys[blocks:], 2) - 1
    out = torch.empty(len(ids), D)
    for n in range(len(ids)):
        for b in range(blocks):
            for z in range(block):
                out[n, b * block + z] = signs[n, b] * array[(places[n, b] + z) % array.numel()]
    return out


@pytest.mark.parametrize("block", [1, 3, 6, 8, 24])
def test_vectors_are_read_at_any_place_of_one_array(block: int) -> None:
    row = -(-block // 4) * 4
    module = CompressedEmbedding(N, D, ROBE(size=7 * row, block=block, seed=3))
    ids = torch.arange(60)
    array = module.stores[0].weight.detach().reshape(-1)
    assert array.numel() == 7 * row
    torch.testing.assert_close(module(ids).detach(), by_hand(array, ids, block, 3))
    starts = module.encoder.handed(torch.arange(N))[0]
    assert starts.unique().tolist() == list(range(row))  # every place, and not those of rows alone


def test_every_entry_is_read_equally_often() -> None:
    module = CompressedEmbedding(20_000, D, ROBE(size=480, block=8))
    module.materialize().sum().backward()
    grad = module.stores[0].weight.grad.reshape(-1)
    module.stores[0].weight.grad = None
    (module.materialize() * module.materialize().detach().sign()).sum().backward()
    reads = (module.stores[0].weight.grad.reshape(-1) * module.stores[0].weight.detach().reshape(-1).sign()).round()
    assert int(reads.sum()) == 20_000 * D
    assert float(reads.std() / reads.mean()) < 0.05  # also around the end, where the array wraps
    assert float(grad.abs().max()) < 0.3 * float(reads.mean())  # signs cancel


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.02), (0.4, 0.05)])
def test_vectors_start_with_the_moments_of_the_table_replaced(mean: float, std: float) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Embedding(4000, D)})
    nn.init.normal_(model["a"].weight, mean, std)
    embcomp.compress_(model, {"a": ROBE(size=8000)})
    for _ in range(2):
        weight = model["a"].weight.detach()
        assert float(weight.std()) == pytest.approx(std, rel=0.05)
        assert float(weight.mean()) == pytest.approx(mean, abs=0.05 * std)
        model["a"].reset_parameters()


def test_a_warm_start_is_the_least_squares_fit() -> None:
    torch.manual_seed(1)
    trained = torch.randn(300, D)
    model = nn.ModuleDict({"a": nn.Embedding.from_pretrained(trained, freeze=False)})
    embcomp.compress_(model, {"a": ROBE(size=960, block=6)}, init="warm")
    # The array is linear in the vectors: which entry, and with which sign, is told by an array of its numbers.
    numbers = by_hand(torch.arange(1, 961).float(), torch.arange(300), 6, 0, "a").reshape(-1)
    matrix = torch.zeros(300 * D, 960)
    matrix[torch.arange(300 * D), numbers.abs().long() - 1] = numbers.sign()
    best = matrix @ torch.linalg.lstsq(matrix, trained.reshape(-1, 1), driver="gelsd").solution
    lost = float((model["a"].materialize().detach() - trained).square().sum())
    assert lost == pytest.approx(float((best.squeeze(1) - trained.reshape(-1)).square().sum()), rel=1e-3)


def test_tables_share_the_array_and_a_budget_is_floats() -> None:
    tables = [Table("a", 1000, 16), Table("b", 50, 8)]
    method = ROBE.for_budget(tables, 20_000)
    beside = 8 * 2 * (2 + 1) + 2 * 4
    assert method.sizes(tables).nbytes() == 4 * method.size + beside
    assert 20_000 - 4 * 8 < 4 * method.size + beside <= 20_000
    model = nn.ModuleDict({"a": nn.Embedding(1000, 16), "b": nn.Embedding(50, 8)})
    embcomp.compress_(model, method)
    assert model["a"].stores[0] is model["b"].stores[0]
    coded = LowBit(bits=4, of=ROBE(size=800))
    assert CompressedEmbedding(N, D, coded)(torch.arange(4)).shape == (4, D)


def test_bad_settings_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"size=42 is not a multiple of 8, the row of block=8; take 40"):
        ROBE(size=42)
    with pytest.raises(ValueError, match=r"table 'a': block=5 does not divide embedding_dim 16"):
        ROBE(size=80, block=5).plan([Table("a", 10, 16)])
    with pytest.raises(ValueError, match="size"):
        ROBE(size=0)


def test_without_signs_blocks_are_read_as_they_are() -> None:
    method = ROBE(size=80, block=8, seed=3, signs=False)
    module = CompressedEmbedding(N, D, method)
    ids = torch.arange(60)
    array = module.stores[0].weight.detach().reshape(-1)
    keys = torch.tensor([hash_key(3, "embedding", j) for j in range(3)])
    places = hash_rows_reference(ids, keys, 80).unsqueeze(-1) + torch.arange(8)
    torch.testing.assert_close(module(ids).detach(), array[places % 80].reshape(60, D))
    assert embcomp.nbytes(module) == 4 * 80 + 3 * 8 + 4
