"""What codes are, in bytes and vectors, for every way."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import embcomp
from embcomp import retrieval
from embcomp.nn import CompressedEmbedding
from embcomp.ops.packed_columns import PackedColumns
from embcomp.retrieval.forms import packed_scales

WAYS = [
    {"bits": 8}, {"bits": 4}, {"bits": 3}, {"bits": 2}, {"bits": 1}, {"bits": 4, "scale": "column"},
    {"bits": 4, "scale": "table"}, {"bits": 4, "width": 8}, {"bits": 4, "width": 8, "rotation": "svd"},
    {"bits": 2, "rotation": "itq"}, {"bits": 2, "rotation": "random"}, {"levels": 1, "rotation": "itq"}, {"levels": 2},
    {"levels": 3, "rotation": "random"}, {"levels": 4, "rotation": "itq"}, {"parts": 4, "codes": 16},
    {"parts": 8, "codes": 50, "rotation": "svd"}, {"row_bits": 24}, {"row_bits": 40, "width": 8},
    {"row_bits": 24, "rotation": None}, {"signs": 19}, {"signs": 40}, {"bits": 3, "size": "unbiased"},
    {"bits": 3, "size": "unbiased", "rotation": "svd", "width": 12}, {"row_bits": 24, "size": "unbiased"},
    {"levels": 2, "size": "unbiased"}, {"signs": 30, "size": "unbiased"},
]  # fmt: skip


def vectors(rows: int = 300, width: int = 16, seed: int = 0) -> Tensor:
    """Of falling spread along turned directions."""
    random = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(width, width, generator=random))[0]
    return torch.randn(rows, width, generator=random) * torch.linspace(2, 0.1, width) @ turn


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_scores_are_products_with_decoded_vectors(way):
    items, queries = vectors(), vectors(9, seed=1)
    codes = retrieval.compress(items, **way)
    decoded = codes.decode()
    lost = (decoded - items).square().sum() / items.square().sum()
    assert lost < 0.5, lost
    expected = queries @ decoded.T
    assert torch.allclose(codes.score(queries), expected, atol=2e-2)
    found = codes.search(queries, 5)
    assert torch.allclose(found.scores, expected.topk(5).values, atol=2e-2)
    some = torch.tensor([7, 0, 299])
    assert torch.allclose(codes.decode(some), decoded[some], atol=1e-5)
    assert torch.allclose(codes.score(queries, rows=some), expected[:, some], atol=2e-2)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_bytes_are_known_before(way):
    codes = retrieval.compress(vectors(), **way)
    said = retrieval.way(**way).nbytes(300, 16)
    assert codes.nbytes == sum(tensor.nbytes for tensor in codes.form.tensors().values())
    assert said - 500 < codes.nbytes <= said if "row_bits" in way else codes.nbytes == said


def test_bytes_by_hand():
    codes = retrieval.compress(vectors(), bits=4)
    assert codes.nbytes == 300 * 16 // 2 + 300 + 256 * 4 + 16 * 4  # codes, size of each row, 256 sizes, factors
    codes = retrieval.compress(vectors(), parts=4, codes=16)
    assert codes.nbytes == 300 * 4 // 2 + 16 * 16 * 2  # codes, books in 16 bits
    codes = retrieval.compress(vectors(320), signs=20)  # codes, sizes of 6 bits, vectors in 8 bits, their factors
    assert codes.nbytes == 320 * 20 // 8 + 320 * 6 // 8 + 64 * 4 + 20 * 16 + 20 * 2


def test_a_grid_of_one_step_is_rounding():
    items = vectors()
    codes = retrieval.compress(items, bits=8, scale="table")
    step = float(codes.form.basis[0])
    expected = ((items / step).floor().clamp(-128, 127) + 0.5) * step
    assert torch.allclose(codes.decode(), expected, atol=1e-6)


def test_row_sizes_lose_least_squares():
    """No other size of a row fits its codes better by more than the 256 sizes are apart."""
    items = vectors()
    for way in ({"levels": 2, "rotation": "itq"}, {"row_bits": 24}):
        decoded = retrieval.compress(items, **way).decode()
        best = (items * decoded).sum(1) / decoded.square().sum(1)
        assert torch.allclose(best, torch.ones(300), atol=0.03)


@pytest.mark.parametrize(
    "way", [{"bits": 3}, {"row_bits": 40}, {"levels": 3, "rotation": "itq"}, {"signs": 40}], ids=str
)
def test_unbiased_sizes_keep_the_product_of_a_vector_with_itself(way):
    items = vectors()
    squares = items.square().sum(1)
    closest = (items * retrieval.compress(items, **way).decode()).sum(1) / squares
    kept = (items * retrieval.compress(items, **way, size="unbiased").decode()).sum(1) / squares
    assert closest.mean() < 0.99  # too short
    assert torch.allclose(kept, torch.ones(300), atol=0.04)  # to the steps of the sizes
    assert abs(float(kept.mean()) - 1) < 0.003


def test_rows_of_zeros_stay_zeros():
    items = vectors()
    items[3] = 0
    for way in ({"bits": 3}, {"row_bits": 24}, {"signs": 20}):
        for size in ("closest", "unbiased"):
            assert float(retrieval.compress(items, **way, size=size).decode()[3].abs().max()) < 1e-20


def test_sizes_of_six_bits_are_near_the_sizes():
    sizes = torch.randn(5000, generator=torch.Generator().manual_seed(0)).exp()
    sizes[7] = 0
    data, table = packed_scales(sizes)
    read = table[PackedColumns(data, 5000, ((1, 6),)).read(torch.arange(5000)).squeeze(1).long()]
    assert len(data) == 5000 * 6 // 8 + 2  # to a multiple of 8
    assert float(read[7]) == pytest.approx(0, abs=1e-20)
    equal = torch.linspace(float(sizes[sizes > 0].min().log()), float(sizes.max().log()), 63).exp()
    nearest = (sizes.unsqueeze(1) - equal).abs().min(1).values
    assert float((read - sizes).square().sum()) < float(nearest.square().sum())  # less than sizes in equal ratios
    for few in (torch.zeros(9), torch.ones(9)):
        data, table = packed_scales(few)
        read = table[PackedColumns(data, 9, ((1, 6),)).read(torch.arange(9)).squeeze(1).long()]
        assert torch.allclose(read, few)


def test_itq_turns_signs_towards_the_vectors():
    items = vectors()
    lost = {}
    for rotation in (None, "random", "itq"):
        codes = retrieval.compress(items, levels=1, rotation=rotation, metric="cosine")
        lost[rotation] = float((codes.decode() - F.normalize(items)).square().sum())
    assert lost["itq"] < min(lost[None], lost["random"])


def test_more_levels_lose_less():
    items = vectors()
    lost = [
        float((retrieval.compress(items, levels=n, rotation="itq").decode() - items).square().sum())
        for n in (1, 2, 3, 4)
    ]
    assert lost == sorted(lost, reverse=True)
    assert lost[3] < 0.05 * float(items.square().sum())


def test_spread_bits_go_where_vectors_vary():
    items = vectors()
    codes = retrieval.compress(items, row_bits=24)
    assert sum(columns * bits for columns, bits in codes.form.packed.groups) == 24
    equal = retrieval.compress(items, bits=2, width=12, rotation="svd")
    lost = [float((each.decode() - items).square().sum()) for each in (codes, equal)]
    assert lost[0] < lost[1]


def test_sums_of_signs_lose_less_than_recurrent_signs():
    for items in (vectors(), torch.randn(300, 16, generator=torch.Generator().manual_seed(0))):
        ways = ({"signs": 16}, {"levels": 1, "rotation": "itq"}, {"row_bits": 16})
        lost = [float((retrieval.compress(items, **way).decode() - items).square().sum()) for way in ways]
        assert lost[0] < min(lost[1:]), lost


def test_each_sign_is_the_better_one():
    items = vectors()
    codes = retrieval.compress(items, signs=20)
    basis, signs = codes.form.matrix, codes.form.codes.centered(torch.arange(300))
    size = codes.form.scale().unsqueeze(1)
    lost = (items - size * signs @ basis).square().sum(1)
    flipped = [(items - size * (signs @ basis - 2 * signs[:, j : j + 1] * basis[j])).square().sum(1) for j in range(20)]
    assert (torch.stack(flipped, 1) >= 0.999 * lost.unsqueeze(1)).float().mean() > 0.99


def test_a_grid_along_directions_of_spread_has_a_step_for_each():
    """Every direction loses what the best grid of 4 bits loses of a normal distribution (Max 1960), .0115."""
    items = vectors(2000)
    codes = retrieval.compress(items, bits=4, rotation="svd")
    axes = torch.linalg.eigh(items.T @ items).eigenvectors
    lost = ((codes.decode() - items) @ axes).square().sum(0) / (items @ axes).square().sum(0)
    assert lost.max() < 0.02


def test_directions_of_products_keep_more_of_them():
    """Items vary most where no query looks."""
    items, queries = vectors(), vectors(200, seed=1)
    turned = items.clone()
    turned[:, 0] += 20 * torch.randn(300, generator=torch.Generator().manual_seed(2))
    queries[:, 0] = 0
    lost = []
    for given in (None, queries):
        codes = retrieval.compress(turned, bits=8, width=8, rotation="svd", queries=given)
        lost.append(float((codes.score(queries) - queries @ turned.T).square().mean()))
    assert lost[1] < 0.7 * lost[0]


@pytest.mark.parametrize("how", ["codes", "hamming"])
def test_signs_of_queries(how):
    items, queries = vectors(), vectors(9, seed=1)
    codes = retrieval.compress(items, levels=1, rotation="itq")
    turn = codes.form.basis.float()
    signs, asked = (codes.decode() @ turn.T).sign(), (queries @ turn.T).sign()
    if how == "hamming":
        expected = 16 - 2 * (signs.unsqueeze(0) != asked.unsqueeze(1)).sum(2).float()
        assert torch.equal(codes.score(queries, how), expected)
        assert torch.equal(codes.search(queries, 3, how).scores, expected.topk(3).values)
    else:
        found, expected = codes.score(queries, how), (asked @ turn) @ codes.decode().T
        pairs = torch.stack([found.flatten(1), expected.flatten(1)])
        for one, other in pairs.unbind(1):  # up to the size of each query
            assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.9999


@pytest.mark.parametrize("way", [{"bits": 4}, {"bits": 3, "rotation": "svd"}, {"levels": 3, "rotation": "itq"},
                                 {"parts": 8, "codes": 64}, {"row_bits": 40}], ids=str)  # fmt: skip
def test_coded_queries_come_close(way):
    items, queries = vectors(), vectors(60, seed=0)  # queries like the items: code books fit them
    codes = retrieval.compress(items, **way)
    pair = torch.stack([codes.score(queries, "codes").flatten(), (queries @ items.T).flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.85


def test_cosine_asks_for_directions_alone():
    items, queries = vectors(), vectors(9, seed=1)
    codes = retrieval.compress(items, bits=8, metric="cosine")
    cosines = F.normalize(queries) @ F.normalize(items).T
    assert torch.allclose(codes.score(1000 * queries), cosines, atol=0.02)
    assert torch.allclose(
        codes.rescore(queries, codes.search(queries, 20).rows, items, 3).scores, cosines.topk(3).values
    )


def test_rescoring_orders_by_the_vectors():
    items, queries = vectors(), vectors(9, seed=1)
    coarse, fine = (retrieval.compress(items, **way) for way in ({"levels": 1, "rotation": "itq"}, {"bits": 8}))
    candidates = coarse.search(queries, 60, "hamming").rows
    exact = queries @ items.T
    expected = exact.gather(1, candidates).topk(5)
    found = coarse.rescore(queries, candidates, items, k=5)
    assert torch.allclose(found.scores, expected.values, atol=1e-4)
    assert torch.equal(found.rows, candidates.gather(1, expected.indices))
    recall = (found.rows.unsqueeze(2) == exact.topk(5).indices.unsqueeze(1)).any(2).float().mean()
    plain = coarse.search(queries, 5, "hamming").rows
    assert recall > (plain.unsqueeze(2) == exact.topk(5).indices.unsqueeze(1)).any(2).float().mean()
    again = coarse.rescore(queries, candidates, fine)  # by codes of the same vectors
    assert again.rows.shape == (9, 60)
    assert torch.allclose(again.scores[:, 0], found.scores[:, 0], rtol=0.05)


def test_zeros_stay_zeros():
    items = vectors()
    items[5] = 0
    for way in ({"bits": 4}, {"levels": 2}, {"row_bits": 24}):
        codes = retrieval.compress(items, **way)
        assert codes.decode(torch.tensor([5])).abs().max() < 1e-20
        assert torch.isfinite(codes.search(vectors(4, seed=2), 300).scores).all()
    assert retrieval.compress(torch.zeros(3, 4), bits=2).decode().abs().max() < 1e-20


def test_sizes_of_rows_span_four_decades():
    items = vectors()
    both = (items, items * torch.logspace(-1.5, 1.5, 300).unsqueeze(1))
    lost = [(retrieval.compress(each, bits=4).decode() - each).norm(dim=1) / each.norm(dim=1) for each in both]
    assert torch.allclose(lost[0], lost[1], atol=0.03)


def test_it_takes_what_a_compressed_table_materializes():
    table = CompressedEmbedding(200, 16, embcomp.HashEmbedding(rows=50))
    codes = retrieval.compress(table.materialize(), bits=4)
    assert (len(codes), codes.width) == (200, 16)
    assert "200 x 16" in repr(codes)


def test_seeds_and_stamps():
    items = vectors()
    way = {"levels": 1, "rotation": "random"}
    one, same, other = (retrieval.compress(items, seed=seed, **way) for seed in (0, 0, 1))
    assert torch.equal(one.form.packed.data, same.form.packed.data)
    assert not torch.equal(one.form.packed.data, other.form.packed.data)
    assert one.version == other.version == retrieval.compress(items.double(), bits=8).version
    assert one.version != retrieval.compress(items + 1e-3, **way).version
    assert retrieval.compress(items, version="monday", **way).version == "monday"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats(dtype):
    items = vectors().to(dtype)
    codes = retrieval.compress(items, bits=8)
    assert torch.allclose(codes.decode(), items.float(), atol=0.1)
    assert codes.search(items[:2], 1).rows.shape == (2, 1)


def test_progress_is_told():
    said = []
    retrieval.compress(vectors(), parts=4, codes=16, progress=lambda *step: said.append(step))
    assert [step[:2] for step in said] == [(1, 4), (2, 4), (3, 4), (4, 4)]
