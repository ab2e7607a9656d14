"""ClusteredHash: sums of two rows by hand; what `recluster_` does to maps, rows and the state of an optimizer."""

import copy

import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagConfig

import embcomp
from embcomp import ClusteredHash, LowBit, Table, recluster_
from embcomp.nn import CompressedEmbedding
from embcomp.ops.hashing import hash_key, hash_rows_reference
from embcomp.ops.kmeans import kmeans
from embcomp.torchrec import CompressedEmbeddingBagCollection, fuse_
from embcomp.torchrec.holders import stores_of

N, D, K, C = 500, 12, 20, 3


def made(seed: int = 0) -> CompressedEmbedding:
    torch.manual_seed(seed)
    return CompressedEmbedding(N, D, ClusteredHash(rows=K, chunks=C))


def rows_of(module: CompressedEmbedding) -> torch.Tensor:
    """The two rows of each id and chunk, [N, C, 2]."""
    return torch.stack([rows.rows for rows in module.encoder(torch.arange(N))], 1)


def test_vectors_are_sums_of_two_rows_side_by_side() -> None:
    module, ids = made(), torch.arange(N)
    keys = torch.tensor([hash_key(0, "embedding", c) for c in range(2 * C)])
    hashed = hash_rows_reference(ids, keys, K)
    tables = module.stores[0].weight.view(C, 2, K, D // C)
    expected = torch.cat([tables[c, 0][hashed[:, c]] + tables[c, 1][hashed[:, C + c]] for c in range(C)], 1)
    torch.testing.assert_close(module.materialize(), expected)


def test_clusters_are_those_of_k_means_and_the_rest_is_residual_means() -> None:
    module = made()
    before, old = module.materialize().detach().view(N, C, -1), rows_of(module)
    recluster_(module, sample=10**6)
    new, weight = rows_of(module), module.stores[0].weight.detach()
    starts = torch.arange(C) * 2 * K
    assert not torch.equal(new[:, :, 1], old[:, :, 1])  # the second hash is another
    assert bool(((new[:, :, 0] - starts >= 0) & (new[:, :, 0] - starts < K)).all())
    lost = fewest = 0.0
    for c in range(C):
        for j in new[:, c, 0].unique().tolist():
            torch.testing.assert_close(weight[j], before[new[:, c, 0] == j, c].mean(0))
        left = before[:, c] - weight[new[:, c, 0]]
        for j in new[:, c, 1].unique().tolist():
            torch.testing.assert_close(weight[j], left[new[:, c, 1] == j].mean(0), atol=1e-5, rtol=1e-4)
        other = kmeans(before[:, c], K, iterations=20, tolerance=1e-4, seed=5)
        lost += float(left.square().sum())
        fewest += float(torch.cdist(before[:, c], other).amin(1).square().sum())
    assert lost < 1.15 * fewest
    after = module.materialize().detach().view(N, C, -1)
    assert float((after - before).square().sum()) < lost  # residual means take some of the rest


def test_each_clustering_finds_more_of_what_training_found() -> None:
    """Vectors that training draws to few points: random sums of rows cannot reach them, clusters come nearer."""
    torch.manual_seed(1)
    points = torch.randn(6, D)[torch.arange(N) % 6]
    losses: dict[bool, list[float]] = {False: [], True: []}
    for recluster, found in losses.items():
        torch.manual_seed(0)
        module = CompressedEmbedding(N, D, ClusteredHash(rows=2 * K, chunks=C))
        optimizer = torch.optim.Adagrad(module.parameters(), lr=0.3)
        for _ in range(5):
            for _ in range(50):
                optimizer.zero_grad()
                loss = (module.materialize() - points).square().mean()
                loss.backward()
                optimizer.step()
            found.append(float(loss.detach()))
            if recluster:
                recluster_(module, optimizer=optimizer)
    assert losses[True] == sorted(losses[True], reverse=True)
    assert losses[True][-1] < 0.7 * losses[False][-1]


@pytest.mark.parametrize("kind", [torch.optim.Adagrad, torch.optim.Adam])
def test_the_state_of_an_optimizer_goes_along(kind: type[torch.optim.Optimizer]) -> None:
    module = made()
    weight = module.stores[0].weight
    optimizer = kind(module.parameters(), lr=0.1)
    (module.materialize() * torch.randn(N, D)).sum().backward()
    optimizer.step()
    name = "sum" if kind is torch.optim.Adagrad else "exp_avg_sq"
    state, old, steps = (
        optimizer.state[weight][name].clone(),
        rows_of(module),
        copy.copy(optimizer.state[weight]["step"]),
    )
    recluster_(module, optimizer=optimizer)
    new, now = rows_of(module), optimizer.state[weight][name]
    for side in (0, 1):
        for j in new[:, 1, side].unique().tolist()[:9]:
            torch.testing.assert_close(now[j], state[old[new[:, 1, side] == j, 1, side]].mean(0))
    assert optimizer.state[weight]["step"] == steps


def test_collections_and_fused_tables_are_clustered_in_the_same_way() -> None:
    tables = [EmbeddingBagConfig(name="embedding", num_embeddings=N, embedding_dim=D, feature_names=["x"])]
    alone = made()
    rows = alone.stores[0].weight.detach().clone()
    recluster_(alone)
    for fused in (False, True):
        collection = CompressedEmbeddingBagCollection(tables, {"*": ClusteredHash(rows=K, chunks=C)})
        model = nn.ModuleDict({"c": collection})
        with torch.no_grad():
            next(collection.parameters()).copy_(rows)
        if fused:
            model = fuse_(model, optimizer=torch.optim.Adagrad, optimizer_kwargs={"lr": 0.1})
        recluster_(model["c"], table="embedding")
        (found,) = stores_of(model["c"]).values()
        torch.testing.assert_close(found, alone.stores[0].weight)


def test_draws_follow_from_the_seed_and_the_state() -> None:
    """A module that is loaded in between goes on as one that never stopped; counts decide what is sampled."""
    first, second = made(), made()
    for _ in range(3):
        recluster_(first)
    recluster_(second)
    third = made(seed=9)
    third.load_state_dict(second.state_dict())
    for _ in range(2):
        recluster_(third)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), third.state_dict().values(), strict=True))
    counted = made()
    recluster_(counted, (torch.arange(N) < 30).float())
    left = (counted.materialize() - made().materialize()).detach().square().sum(1)
    assert float(left[:30].mean()) < 0.3 * float(left[30:].mean())


def test_bytes_budgets_and_refusals() -> None:
    tables = [Table("a", 1000, 16)]
    method = ClusteredHash.for_budget(tables, 16_000)
    assert method.sizes(tables).nbytes() == method.plan(tables).nbytes() <= 16_000
    with pytest.raises(ValueError, match=r"table 'a': chunks=3 does not divide embedding_dim 16"):
        ClusteredHash(rows=4, chunks=3).plan(tables)
    for module, said in (
        (CompressedEmbedding(N, D, embcomp.MultiHash(rows=9)), "is for float rows of ClusteredHash, got MultiHash"),
        (CompressedEmbedding(N, D, LowBit(bits=4, of=ClusteredHash(rows=9))), "is for float rows of ClusteredHash"),
        (nn.Linear(2, 2), "got Linear; give it the module of the table"),
    ):
        with pytest.raises(ValueError, match=said):
            recluster_(module)
    module = made()
    before = copy.deepcopy(module.state_dict())
    for counts in (torch.ones(N - 1), torch.full((N,), -1.0), torch.zeros(N)):
        with pytest.raises(ValueError, match=rf"counts must be finite, not negative, not all zero, \[{N}\]"):
            recluster_(module, counts)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
