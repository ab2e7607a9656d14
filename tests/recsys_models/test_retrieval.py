"""Retrieval models against plain formulas, one pair at a time; propagation against the dense matrix."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import embcomp
from embcomp.graph import ClusterMap, Mixture
from recsys_models import MF, NGCF, RETRIEVAL_MODELS, LightGCN, NeuMF, build_retrieval
from recsys_models.propagation import NormalizedAdjacency

USERS, ITEMS, DIM = 30, 20, 8
CLUSTERS = {name: ClusterMap.of(torch.arange(n) % 6, 6) for name, n in (("user_id", USERS), ("item_id", ITEMS))}
MIXTURES = {
    name: Mixture.of((torch.arange(found.num_ids)[:, None] + torch.arange(2)) % 6, torch.ones(found.num_ids, 2), found)
    for name, found in CLUSTERS.items()
}
METHODS = {
    "plain": None,
    "hashing": embcomp.HashingTrick(rows=7),
    "double": embcomp.DoubleHash(rows=7),
    "product": embcomp.QuotientRemainder(rows=5),
    "clusters": embcomp.GraphHash(CLUSTERS),
    "mixtures": embcomp.SoftGraphHash(CLUSTERS, weights=MIXTURES, k=2),
    "frequency": embcomp.FrequencyHash(
        rows=9, counts={"user_id": torch.arange(USERS), "item_id": torch.arange(ITEMS)}, tail="double"
    ),
}


@pytest.fixture
def edges():
    """Every user but the last and every item but the last has an edge."""
    users, items = torch.randint(USERS - 1, (90,)), torch.randint(ITEMS - 1, (90,))
    everyone = torch.arange(USERS - 1)
    return torch.stack([torch.cat([users, everyone]), torch.cat([items, everyone % (ITEMS - 1)])])


def tables(method=None) -> list[nn.Module]:
    model = nn.ModuleDict({"user_id": nn.Embedding(USERS, DIM), "item_id": nn.Embedding(ITEMS, DIM)})
    if method is not None:
        embcomp.compress_(model, {"*": method})
    return list(model.values())


def dense_adjacency(edges):
    """D^-1/2 A D^-1/2, entry by entry."""
    r = torch.zeros(USERS, ITEMS)
    for user, item in edges.T.tolist():
        r[user, item] = 1.0
    a = torch.zeros(USERS + ITEMS, USERS + ITEMS)
    a[:USERS, USERS:], a[USERS:, :USERS] = r, r.T
    degrees = a.sum(1)
    scale = torch.where(degrees > 0, degrees.rsqrt(), 0.0)
    return scale[:, None] * a * scale[None]


def test_propagation_is_the_normalised_adjacency(edges):
    adjacency, dense = NormalizedAdjacency(edges, USERS, ITEMS), dense_adjacency(edges)
    x = torch.randn(USERS + ITEMS, DIM, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weights = torch.randn(USERS + ITEMS, DIM)
    for product, vectors in ((adjacency(x), x), (dense @ y, y)):
        (product * weights).sum().backward()
        assert vectors.grad is not None
    torch.testing.assert_close(adjacency(x), dense @ y)
    torch.testing.assert_close(x.grad, y.grad)
    assert not adjacency(x)[[USERS - 1, -1]].any()  # nodes without edges
    double = x.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: adjacency(v[:, :2]), double)
    assert torch.autograd.gradgradcheck(lambda v: adjacency(v[:, :2]), double)
    assert torch.autograd.gradcheck(lambda v: adjacency.layer_mean(v[:, :2], 3), double)


def test_propagation_knows_edges_not_their_order_or_number(edges):
    shuffled = torch.cat([edges, edges[:, :7]], dim=1)[:, torch.randperm(edges.shape[1] + 7)]
    first, second = (NormalizedAdjacency(e, USERS, ITEMS) for e in (edges, shuffled.int()))
    for name, buffer in first.named_buffers():
        assert torch.equal(buffer, second.get_buffer(name))
    assert not first.state_dict()
    assert embcomp.nbytes(copy.deepcopy(first)) > 0


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.zeros(2, 0, dtype=torch.int64), ValueError, "no edges"),
        (torch.zeros(3, 2), ValueError, r"integers \[2, E\].*float32 \[3, 2\]"),
        (torch.tensor([[0, USERS], [0, 0]]), IndexError, "name user 30, but there are 30 users"),
        (torch.tensor([[0, 0], [0, -1]]), IndexError, "name item -1"),
    ],
)
def test_bad_edges_are_named(bad, error, message):
    with pytest.raises(error, match=message):
        NormalizedAdjacency(bad, USERS, ITEMS)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_lightgcn_is_the_mean_of_its_layers(edges, method, layers):
    users, items = tables(method)
    model = LightGCN(users, items, edges=edges, num_layers=layers)
    e0 = torch.cat([users.weight, items.weight])
    dense = dense_adjacency(edges)
    final = sum(torch.linalg.matrix_power(dense, k) @ e0 for k in range(layers + 1)) / (layers + 1)
    torch.testing.assert_close(torch.cat(model.vectors()), final)
    check_scores(model, lambda u, i: final[u] @ final[USERS + i])
    # Training moves what the brute force says it should.
    parameters = list(model.parameters())
    loss = model(torch.tensor([0, 3, 0]), torch.tensor([[1, 2], [3, 4], [1, 1]])).square().sum()
    pairs = [(0, 1), (0, 2), (3, 3), (3, 4), (0, 1), (0, 1)]
    expected = sum((final[u] @ final[USERS + i]).square() for u, i in pairs)
    grads, wanted = torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, want, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_mf_is_an_inner_product(method):
    users, items = tables(method)
    model = MF(users, items)
    check_scores(model, lambda u, i: users(torch.tensor(u)) @ items(torch.tensor(i)))
    many = torch.arange(2 * USERS) % USERS, torch.arange(4 * USERS).reshape(-1, 2) % ITEMS  # more than the tables have
    parts = [model(users, items) for users, items in zip(many[0].split(7), many[1].split(7), strict=True)]
    grads = [torch.autograd.grad(s.square().sum(), list(model.parameters())) for s in (model(*many), torch.cat(parts))]
    torch.testing.assert_close(model(*many), torch.cat(parts))
    torch.testing.assert_close(*grads)


def test_ngcf_is_the_formula_of_the_paper(edges):
    users, items = tables()
    model = NGCF(users, items, edges=edges, hidden=[5, 3])
    laplacian = dense_adjacency(edges)
    layers = [torch.cat([users.weight, items.weight])]
    for w_1, w_2 in zip(model.sums, model.products, strict=True):
        e = layers[-1]
        inside = (laplacian + torch.eye(len(e))) @ e @ w_1.weight.T + ((laplacian @ e) * e) @ w_2.weight.T
        layers.append(torch.where(inside > 0, inside, 0.2 * inside))
    final = torch.cat(layers, dim=1)
    assert final.shape[1] == DIM + 5 + 3
    check_scores(model, lambda u, i: final[u] @ final[USERS + i])


def test_ngcf_drops_messages_in_training_alone(edges):
    model = NGCF(*tables(), edges=edges, hidden=[64], dropout=0.5)
    dropped = (torch.cat(model.vectors())[:, DIM:] == 0).float().mean().item()
    assert dropped == pytest.approx(0.5, abs=0.1)
    model.eval()
    assert torch.equal(model.vectors()[0], model.vectors()[0])


@pytest.mark.parametrize("hidden", [[6], [6, 4, 3]])
def test_neumf_is_the_formula_of_the_paper(hidden, monkeypatch):
    users, items = tables(METHODS["double"])
    model = NeuMF(users, items, gmf_dim=3, hidden=hidden)
    first = torch.cat([model.first_of_user.weight, model.first_of_item.weight], dim=1)
    rest = [layer for layer in model.hidden if isinstance(layer, nn.Linear)]
    h = torch.cat([model.gmf_weights.weight, model.mlp_weights.weight], dim=1)

    def score(u, i):
        p, q = users(torch.tensor(u)), items(torch.tensor(i))
        deep = F.relu(first @ torch.cat([p[3:], q[3:]]) + model.first_of_user.bias)
        for layer in rest:
            deep = F.relu(layer.weight @ deep + layer.bias)
        return (h @ torch.cat([p[:3] * q[:3], deep]) + model.mlp_weights.bias).squeeze()

    assert len(rest) == len(hidden) - 1
    check_scores(model, score)
    monkeypatch.setattr("recsys_models.neumf._BLOCK", 2 * ITEMS * 6)  # two users at once
    check_scores(model, score)


def check_scores(model, score):
    """Pairs and full rankings say what `score(u, i)` says."""
    with torch.no_grad():
        every = torch.stack([torch.stack([score(u, i) for i in range(ITEMS)]) for u in range(USERS)])
    users, items = torch.tensor([3, 0, 3, USERS - 1]), torch.tensor([[1, 2], [0, 19], [1, 1], [5, 4]])
    torch.testing.assert_close(model(users, items), every[users[:, None], items], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.scorer()(users), every[users], atol=1e-4, rtol=1e-4)
    some = torch.tensor([7, 0, 7, 3])
    torch.testing.assert_close(model.scorer(some)(users), every[users][:, some], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", RETRIEVAL_MODELS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_every_model_trains_every_kind_of_table(edges, name, method):
    model = build_retrieval(name, *tables(method), edges=edges)
    model(torch.tensor([0, 1]), torch.tensor([[1, 2], [3, 4]])).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    copied = build_retrieval(name, *tables(method), edges=edges)
    copied.load_state_dict(model.state_dict())
    assert torch.equal(copied.eval().scorer()(torch.arange(3)), model.eval().scorer()(torch.arange(3)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("LightGNC", {}, r"'LightGNC' is unknown: choose one of MF, LightGCN.*did you mean 'LightGCN'"),
        ("lightgcn", {"layers": 2}, r"LightGCN takes no option 'layers'.*did you mean 'num_layers'"),
        ("MF", {"layers": 2}, "its options are none"),
        ("ngcf", {"edges": None}, "NGCF propagates along the edges"),
        ("ngcf", {"hidden": []}, "hidden is empty"),
        ("neumf", {"gmf_dim": 8}, "gmf_dim is 8; it must lie between 0 and the embedding's 8"),
        ("neumf", {"hidden": []}, "hidden is empty"),
        ("lightgcn", {"num_layers": -1}, "num_layers must be at least 0, not -1"),
    ],
)
def test_what_a_model_rejects(edges, name, options, message):
    with pytest.raises(ValueError, match=message):
        build_retrieval(name, *tables(), **{"edges": edges, **options})


def test_tables_must_fit():
    with pytest.raises(ValueError, match="users are 8 wide and items 4"):
        MF(nn.Embedding(3, 8), nn.Embedding(3, 4))
    with pytest.raises(ValueError, match="items have an open id space"):
        MF(nn.Embedding(3, 8), embcomp.nn.CompressedEmbedding(None, 8, embcomp.HashingTrick(rows=5)))
