import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import embcomp
from embcomp import DoubleGraphHash, GraphHash, SoftGraphHash
from embcomp.graph import ClusterMap, Mixture, cluster, mixture
from embcomp.methods import Table
from embcomp.nn import CompressedEmbedding
from embcomp.testing.drop_ins import randomize
from tests import hash_spec
from tests.graph.graphs import power_law

CLUSTERS = ClusterMap.of([0, 0, 2, -1, 1, 2], rows=5, unseen_rows=2)


def rows_of(emb: CompressedEmbedding, ids: list[int]) -> list[list[int]]:
    return torch.cat([chunk.rows for chunk in emb.encoder(torch.tensor(ids))], 1).tolist()


def test_ids_read_their_cluster_and_unseen_ones_the_kept_rows() -> None:
    emb = CompressedEmbedding(6, 4, GraphHash(CLUSTERS, seed=4))
    unseen = 3 + hash_spec.row(3, 4, "embedding", 0, 2)
    assert rows_of(emb, [0, 1, 2, 3, 4, 5]) == [[0], [0], [2], [unseen], [1], [2]]
    spread = CompressedEmbedding(6, 4, GraphHash(ClusterMap.of(CLUSTERS.assignment(), rows=3)))
    assert rows_of(spread, [3]) == [[hash_spec.row(3, 0, "embedding", 0, 3)]]


def test_an_open_id_space_hashes_what_the_map_lacks() -> None:
    emb = CompressedEmbedding(None, 4, GraphHash(CLUSTERS))
    ids = [5, 6, 2**62]
    assert rows_of(emb, ids) == [[2]] + [[3 + hash_spec.row(id, 0, "embedding", 0, 2)] for id in ids[1:]]


def test_hot_ids_own_rows() -> None:
    emb = CompressedEmbedding(6, 4, GraphHash(CLUSTERS, hot=torch.tensor([1, 4])))
    assert rows_of(emb, [0, 1, 2, 4, 5]) == [[0], [3], [2], [1], [2]]
    (weight,) = emb.parameters()
    assert weight.shape == (6, 4)  # id 4 was alone already
    assert embcomp.nbytes(emb) == 6 * 16 + CLUSTERS.with_own_rows([1]).nbytes + 8


def test_double_adds_a_hashed_row() -> None:
    shared = randomize(CompressedEmbedding(6, 4, DoubleGraphHash(CLUSTERS, seed=1)))
    (table,) = shared.parameters()
    second = [hash_spec.row(id, 1, "embedding", 1, 5) for id in range(6)]
    torch.testing.assert_close(shared(torch.tensor([2, 4])), table[[2, 1]] + table[[second[2], second[4]]])
    own = randomize(CompressedEmbedding(6, 4, DoubleGraphHash(CLUSTERS, second="own", rows=7)))
    first, other = own.parameters()
    assert (first.shape, other.shape) == ((5, 4), (7, 4))
    second = hash_spec.row(2, 0, "embedding", 1, 7)
    torch.testing.assert_close(own(torch.tensor(2)), first[2] + other[second])


def test_soft_is_the_weighted_mean() -> None:
    rows = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 0, 0], [1, 0, 2], [2, 1, 0]])
    weights = torch.tensor([[0.5, 0.3, 0.2]] * 3 + [[0.0] * 3] + [[1.0, 0.0, 0.0]] + [[1.0, 1.0, 1.0]])
    for k in (1, 2, 3):
        emb = randomize(
            CompressedEmbedding(6, 4, SoftGraphHash(CLUSTERS, weights=Mixture.of(rows, weights, CLUSTERS), k=k))
        )
        (table,) = emb.parameters()
        stored = (weights * 255 / weights.amax(1, keepdim=True).clamp(min=1e-9)).round()[:, :k]
        for id in (0, 1, 2, 4, 5):
            share = stored[id] / stored[id].sum()
            torch.testing.assert_close(emb(torch.tensor(id)), share @ table[rows[id, :k]])
        assert torch.equal(emb(torch.tensor(3)), table[3 + hash_spec.row(3, 0, "embedding", 0, 2)])
        assert embcomp.nbytes(emb) == 5 * 16 + 4 * (-(-6 * k * 2 // 32) + 2) + 6 * k + 8


@pytest.mark.parametrize("bits", [1, 3, 4, 7])
def test_weights_of_fewer_bits_are_rounded_and_packed(bits: int) -> None:
    rows = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 0, 0], [1, 0, 2], [2, 1, 0]])
    weights = torch.tensor([[0.5, 0.3, 0.2]] * 3 + [[0.0] * 3] + [[1.0, 0.0, 0.0]] + [[1.0, 0.9, 0.4]])
    found = Mixture.of(rows, weights, CLUSTERS)
    method = SoftGraphHash(CLUSTERS, weights=found, k=3, weight_bits=bits)
    emb = randomize(CompressedEmbedding(6, 4, method))
    (table,) = emb.parameters()
    stored = torch.tensor([[round(weight * (2**bits - 1) / 255) for weight in row] for row in found.weights.tolist()])
    for id in (0, 1, 2, 4, 5):
        share = stored[id] / stored[id].sum()
        torch.testing.assert_close(emb(torch.tensor(id)), share @ table[rows[id]])
    assert torch.equal(emb(torch.tensor(3)), table[3 + hash_spec.row(3, 0, "embedding", 0, 2)])
    assert embcomp.nbytes(emb) == 5 * 16 + 4 * (-(-18 * 2 // 32) + 2) + 4 * (-(-18 * bits // 32) + 2) + 8
    state = emb.state_dict()
    whole = CompressedEmbedding(6, 4, SoftGraphHash(CLUSTERS, weights=method.weights, k=3))
    with pytest.raises(ValueError, match=f"weight_bits: saved {bits}, here 8"):
        whole.load_state_dict(state)


@pytest.mark.parametrize("bits", [None, 4])
def test_a_state_from_before_weights_had_bits_loads(bits: int | None) -> None:
    """A setting that came after a state was saved had its default, inside a wrapper, too."""
    soft = SoftGraphHash(CLUSTERS, weights=Mixture.of(torch.ones(6, 2).long(), torch.rand(6, 2), CLUSTERS), k=2)
    method = soft if bits is None else embcomp.LowBit(bits=bits, of=soft)
    emb, other = (randomize(CompressedEmbedding(6, 4, method), seed) for seed in (0, 1))
    del emb.encoder.config_of("weight_bits")["weight_bits"]
    other.load_state_dict(emb.state_dict())
    assert torch.equal(other(torch.arange(6)), emb(torch.arange(6)))
    assert other.encoder.weights.dtype == torch.uint8
    fewer = dataclasses.replace(soft, weight_bits=4)
    third = CompressedEmbedding(6, 4, fewer if bits is None else embcomp.LowBit(bits=bits, of=fewer))
    with pytest.raises(ValueError, match="weight_bits"):
        third.load_state_dict(emb.state_dict())


def test_a_file_from_before_weights_had_bits_loads(tmp_path: Path) -> None:
    """A file of `embcomp.save` keeps the attributes of an encoder; those that came later have their defaults."""
    soft = SoftGraphHash(CLUSTERS, weights=Mixture.of(torch.ones(6, 2).long(), torch.rand(6, 2), CLUSTERS), k=2)
    model = nn.ModuleDict({"a": randomize(CompressedEmbedding(6, 4, soft)), "b": nn.Embedding(6, 4)})
    encoder = model["a"].encoder
    del encoder.config_of("weight_bits")["weight_bits"], encoder.__dict__["weight_bits"]
    embcomp.save(model, tmp_path / "model.safetensors")
    loaded = embcomp.load(nn.ModuleDict({name: nn.Embedding(6, 4) for name in "ab"}), tmp_path / "model.safetensors")
    assert torch.equal(loaded["a"](torch.arange(6)), model["a"](torch.arange(6)))


def test_a_map_of_another_table_is_refused() -> None:
    tables = [Table("film", 7, 8), Table("user", 6, 8)]
    with pytest.raises(ValueError, match="table 'film' has 7 ids, but the map of items has 6: is it another table's"):
        GraphHash(CLUSTERS).plan(tables)
    with pytest.raises(ValueError, match="clusters names no table 'user'; it has"):
        GraphHash({"film": CLUSTERS}).plan(tables[1:])
    with pytest.raises(ValueError, match=r"GraphHash: clusters must be a ClusterMap.*got Clusters"):
        GraphHash(cluster(power_law(9, 9, 40), 4)).plan(tables)
    other = Mixture.of(torch.zeros(6, 1, dtype=torch.int64), torch.ones(6, 1), ClusterMap.of([0] * 6, 5))
    with pytest.raises(ValueError, match="table 'user': weights must be a Mixture over the same ids and clusters"):
        SoftGraphHash(CLUSTERS, weights=other).plan(tables[1:])
    with pytest.raises(ValueError, match="of 1 clusters has no 4"):
        SoftGraphHash(ClusterMap.of([0] * 6, 5), weights=other).plan(tables[1:])


@pytest.mark.parametrize(
    "settings", [{"second": "other"}, {"second": "own"}, {"rows": 4}, {"second": "shared", "rows": 4}]
)
def test_wrong_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="second"):
        DoubleGraphHash(CLUSTERS, **settings)
    with pytest.raises(ValueError, match="with_own_rows"):
        SoftGraphHash(CLUSTERS, weights={}, hot=[1])


def test_a_given_clustering_fits_a_budget_or_not() -> None:
    tables = [Table("user", 6, 8)]
    size = GraphHash(CLUSTERS).plan(tables).nbytes()
    assert GraphHash.for_budget(tables, size + 99, clusters=CLUSTERS, seed=3).plan(tables).nbytes() == size
    with pytest.raises(ValueError, match=f"budget of {size - 1} bytes is too small for 'user'.*{size} bytes"):
        GraphHash.for_budget(tables, size - 1, clusters=CLUSTERS)


@pytest.mark.parametrize(
    ("method", "fixed"),
    [
        (GraphHash, {}),
        (GraphHash, {"algorithm": "louvain", "objective": "cpm"}),
        (DoubleGraphHash, {}),
        (DoubleGraphHash, {"second": "own"}),
        (GraphHash, {"hot": {"user": [0, 1, 2], "item": [*range(20), 0]}}),
        (DoubleGraphHash, {"second": "own", "hot": [3, 4, 5, 6]}),
        (SoftGraphHash, {"k": 3}),
        (SoftGraphHash, {"k": 3, "weight_bits": 4}),
        (SoftGraphHash, {"second_clusters": "users", "objective": "balanced", "algorithm": "label_propagation"}),
    ],
)
def test_edges_fill_a_budget(method: type[GraphHash], fixed: dict) -> None:
    edges = power_law(300, 200, 2500)
    tables = [Table("user", 300, 16), Table("item", 200, 16)]
    sides = {"user": "users", "item": "items"}
    for share in (0.25, 0.5):
        budget = int(share * 500 * 64)
        found = method.for_budget(tables, budget, edges=edges, sides=sides, **fixed)
        model = nn.ModuleDict({t.name: nn.Embedding(t.num_embeddings or 0, 16) for t in tables})
        embcomp.compress_(model, {"*": found})
        least = 0.95 if "hot" in fixed else 0.97  # a hot id that is alone in its cluster needs no row more
        assert least * budget < embcomp.nbytes(model) <= budget
    alone = method.for_budget(tables[:1], 9000, edges=edges, sides=sides, **fixed)
    assert 8500 < alone.plan(tables[:1]).nbytes() <= 9000
    with pytest.raises(ValueError, match=r"budget of 10 bytes is too small.*takes [0-9]+ bytes"):
        method.for_budget(tables, 10, edges=edges, sides=sides, **fixed)
    with pytest.raises(ValueError, match="side must be 'users' or 'items', got 'item'"):
        method.for_budget(tables, 9000, edges=edges, sides={**sides, "item": "item"}, **fixed)
    with pytest.raises(ValueError, match="sides names no table 'item'"):
        method.for_budget(tables, 9000, edges=edges, sides={"user": "users"}, **fixed)


def test_baco_gives_users_a_second_cluster_and_items_one() -> None:
    edges = power_law(300, 200, 2500)
    tables = [Table("user", 300, 16), Table("item", 200, 16)]
    method = SoftGraphHash.for_budget(
        tables, 12_000, edges=edges, sides={"user": "users", "item": "items"}, second_clusters="users",
        objective="balanced", algorithm="label_propagation",
    )  # fmt: skip
    users, items = (part.encoder(torch.arange(part.table.num_embeddings))[0] for part in method.plan(tables).tables)
    assert items.weights is None
    placed = torch.from_numpy(edges.degrees("items") > 0)
    assert torch.equal(items.rows[placed, 0], method.clusters["item"].assignment()[placed])
    two, first = users.weights[:, 1] > 0, method.clusters["user"].assignment()
    assert 0.5 < two.float().mean() < 1
    assert (users.weights[two] == 0.5).all()
    one = ~two & (first >= 0)
    assert torch.equal(users.rows[one, 0], first[one])
    assert (users.rows[two] == first[two, None]).sum(1).tolist() == [1] * int(two.sum())
    with pytest.raises(ValueError, match="of 2 clusters has no 4"):
        SoftGraphHash.for_budget(
            tables, 12_000, edges=edges, sides={"user": "users", "item": "items"}, second_clusters="users", k=4
        ).plan(tables)


def test_warm_start_of_clusters_is_their_mean() -> None:
    edges = power_law(60, 40, 300)
    clusters = cluster(edges, 20)
    model = nn.ModuleDict({"item": nn.Embedding(40, 8)})
    trained = model["item"].weight.detach().clone()
    embcomp.compress_(model, {"item": GraphHash(clusters.items)}, init="warm")
    rows = clusters.items.assignment()
    row = int(rows[rows >= 0].mode().values)
    member = int((rows == row).nonzero()[0, 0])
    ids = [id for id in range(40) if rows_of(model["item"], [id]) == [[row]]]
    torch.testing.assert_close(model["item"](torch.tensor(member)).detach(), trained[ids].mean(0))
    soft = SoftGraphHash(clusters.items, weights=mixture(edges, clusters, "items", k=2), k=2)
    model = nn.ModuleDict({"item": nn.Embedding.from_pretrained(trained.clone(), freeze=False)})
    embcomp.compress_(model, {"item": soft}, init="warm")
    (chunk,) = model["item"].encoder(torch.arange(40))
    design = torch.zeros(40, clusters.items.rows).scatter_add_(1, chunk.rows, chunk.weights)
    best = design @ torch.linalg.lstsq(design, trained).solution
    error = (model["item"].materialize().detach() - trained).square().sum()
    assert float(error) < 1.02 * float((best - trained).square().sum())
