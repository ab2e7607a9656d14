"""`remap_` on compressed collections: what the drop-in of torch does, and training goes on as unfused."""

import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor

import embcomp
from embcomp.graph import ClusterMap, Mixture, remap_
from embcomp.torchrec import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection, fuse_, fused_optimizer
from tests.torchrec.training import OPTIMIZERS, Model, assert_same, every_optimizer, fused_twin, train_both

OLD = ClusterMap.of([0, 0, 1, -1, 2, 2], 3)
NEW = ClusterMap.of([0, 1, 1, 2, 2, -1, 0], 3)  # ids 1 and 3 have moved, 5 is unseen, 6 is new
COUNTS = torch.tensor([1.0, 2.0, 3.0, 1.0, 1.0, 1.0])


def batch(ids: list[int], others: list[int]) -> KeyedJaggedTensor:
    values, lengths = torch.tensor(ids + others), torch.ones(len(ids) * 2, dtype=torch.int64)
    return KeyedJaggedTensor.from_lengths_sync(["film", "user"], values, lengths)


def collection(kind: str, method: embcomp.GraphHash) -> nn.Module:
    config = EmbeddingBagConfig if kind == "bags" else EmbeddingConfig
    made = CompressedEmbeddingBagCollection if kind == "bags" else CompressedEmbeddingCollection
    sizes = {"film": 6, "user": 9}
    tables = [config(name=n, num_embeddings=s, embedding_dim=4, feature_names=[n]) for n, s in sizes.items()]
    return made(tables, {"film": method, "user": embcomp.HashingTrick(rows=4)})


@pytest.mark.parametrize("kind", ["bags", "sequences"])
@pytest.mark.parametrize("second", [None, "shared", "own"])
def test_a_collection_reads_what_the_torch_module_reads(kind: str, second: str | None) -> None:
    more = {"rows": 5} if second == "own" else {}
    method = embcomp.DoubleGraphHash(OLD, second=second, **more) if second else embcomp.GraphHash(OLD)
    torch.manual_seed(0)
    found = collection(kind, method)
    held = {name.split(".")[-2]: weight for name, weight in found.named_parameters()}
    alone = embcomp.nn.CompressedEmbedding.from_plan(
        *(lambda plan: (plan, plan.tables[0], embcomp.nn.table.make_stores(plan, False, None, None)))(
            method.plan([embcomp.Table("film", 6, 4)])
        )
    )
    stores = ["film", *[name for name in held if name not in ("film", "user")]]
    for store, name in zip(alone.stores, stores, strict=True):
        store.weight.data.copy_(held[name].data)
    remap_(found, NEW, COUNTS, table="film")
    remap_(alone, NEW, COUNTS)
    ids = list(range(7))
    out = found(batch(ids, ids))["film"]
    torch.testing.assert_close(out if kind == "bags" else out.values(), alone(torch.tensor(ids)))
    configs = found.embedding_bag_configs() if kind == "bags" else found.embedding_configs()
    assert [config.num_embeddings for config in configs] == [7, 9]
    with pytest.raises(IndexError, match="film"):
        found(batch([7], [0]))


def soft(where: str, method: embcomp.SoftGraphHash) -> tuple[torch.nn.Module, str | None]:
    """Six films in a drop-in, or in a collection, plain or fused; and the name of their table there."""
    if where == "torch":
        return embcomp.nn.CompressedEmbedding(6, 4, method), None
    module = collection("bags", method)
    if where == "fused":
        fuse_(module, optimizer=torch.optim.SGD)
    return module, "film"


@pytest.mark.parametrize(("where", "bits"), [("torch", 8), ("torchrec", 8), ("fused", 8), ("torch", 4), ("fused", 4)])
def test_a_mixture_grows(where: str, bits: int) -> None:
    rows, weights = torch.tensor([[0, 1], [2, 0], [1, 2], [0, 0], [2, 1], [2, 2]]), torch.rand(6, 2) + 0.1
    weights[3] = 0.0  # id 3 is unseen
    old = Mixture.of(rows, weights, OLD)
    rows, weights = torch.cat([rows, torch.tensor([[1, 0]])]), torch.cat([weights, torch.tensor([[3.0, 1.0]])])
    weights[3] = torch.tensor([1.0, 0.0])
    new, method = Mixture.of(rows, weights, NEW), embcomp.SoftGraphHash(OLD, weights=old, k=2, weight_bits=bits)
    module, table = soft(where, method)
    held = next(weight for name, weight in module.named_parameters() if "user" not in name).detach().clone()

    def vectors(ids: list[int]) -> torch.Tensor:
        return module(torch.tensor(ids)) if table is None else module(batch(ids, ids))["film"]

    before = vectors([0, 1, 2, 4, 5]).detach().clone()
    remap_(module, new, table=table)
    assert torch.equal(vectors([0, 1, 2, 4, 5]), before)
    torch.testing.assert_close(
        vectors([3, 6]).detach(), torch.stack([held[0], (3 * held[1] + held[0]) / 4]), atol=2e-3, rtol=0
    )
    for wrong, says in (
        (old, "mixture of 7 ids, the new one has 6"),
        (OLD, "got a ClusterMap for one of Soft"),
    ):
        with pytest.raises(ValueError, match=says):
            remap_(module, wrong, table=table)
    with pytest.raises(ValueError, match="over other rows"):
        remap_(module, Mixture.of(rows, weights, ClusterMap.of([0] * 7, 5)), table=table)


@pytest.mark.parametrize("where", ["torch", "torchrec", "fused"])
def test_a_mixture_of_a_new_clustering_keeps_the_vectors_as_well_as_it_can(where: str) -> None:
    """Least squares, by torch's solver."""
    torch.manual_seed(0)
    rows, weights = torch.rand(6, 3).argsort(1)[:, :2], torch.rand(6, 2) + 0.1
    old = Mixture.of(rows, weights, OLD)
    method = embcomp.SoftGraphHash(OLD, weights=old, k=2)
    module, table = soft(where, method)
    held = next(weight for name, weight in module.named_parameters() if "user" not in name)

    def design(found: Mixture) -> torch.Tensor:
        share = found.weights[:6].float() / found.weights[:6].float().sum(1, keepdim=True)
        return torch.zeros(6, 3).scatter_add_(1, found.rows_of(torch.arange(6)), share)

    vectors = design(old) @ held.detach()
    remap_(module, Mixture.of(2 - rows, weights, OLD), table=table)  # the same with other row numbers
    ids = list(range(6))
    now = module(torch.tensor(ids)) if table is None else module(batch(ids, ids))["film"]
    torch.testing.assert_close(now.detach(), vectors, atol=1e-4, rtol=1e-4)
    weights = torch.rand(7, 2) + 0.1
    new = Mixture.of(torch.cat([rows.flip(0), rows[:1]]), weights, NEW)
    remap_(module, new, COUNTS, table=table)
    by_count = COUNTS.sqrt().unsqueeze(1)
    best = torch.linalg.lstsq(by_count * design(new), by_count * vectors).solution
    torch.testing.assert_close(held.detach(), best, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match=r"counts has shape \[6\], but the old mixture has 7"):
        remap_(module, Mixture.of(torch.cat([rows, rows[:1]]), weights, NEW), COUNTS, table=table)


@every_optimizer
def test_training_goes_on_alike_inside_and_outside_the_backward_pass(optimizer: str) -> None:
    torch.manual_seed(0)
    model = Model(collection("bags", embcomp.GraphHash(OLD)))
    fused = fused_twin(model, optimizer)
    outside = train_both(model, fused, optimizer, [batch([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])])
    sums = [state["sum"].clone() for state in outside.state.values() if "sum" in state]
    remap_(model.collection, NEW, COUNTS, table="film", optimizer=outside)
    remap_(fused.collection, NEW, COUNTS, table="film", optimizer=fused_optimizer(fused))
    assert_same(model, fused, outside)
    if sums:  # row 1 is now read by ids 1 (of row 0) and 2 (of row 1), which weigh 2 and 3
        film = next(weight for name, weight in model.named_parameters() if "film" in name)
        torch.testing.assert_close(outside.state[film]["sum"][1], (2 * sums[0][0] + 3 * sums[0][1]) / 5)
    kind, kwargs = OPTIMIZERS[optimizer]
    for each in (model, fused):
        step = kind(model.parameters(), **kwargs) if optimizer == "SGD" else outside
        step.zero_grad()
        each(batch([6, 5, 1], [1, 1, 1])).square().sum().backward()
        if each is model:
            step.step()
    assert_same(model, fused, outside)


def test_moments_of_adam_follow_the_rows() -> None:
    emb = embcomp.nn.CompressedEmbedding(6, 4, embcomp.GraphHash(OLD))
    adam = torch.optim.Adam(emb.parameters())
    emb(torch.tensor([0, 2, 4])).square().sum().backward()
    adam.step()
    before = {name: kept.clone() for name, kept in adam.state[emb.stores[0].weight].items()}
    remap_(emb, NEW, COUNTS, optimizer=adam)
    after = adam.state[emb.stores[0].weight]
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(after[name][1], (2 * before[name][0] + 3 * before[name][1]) / 5)
        assert torch.equal(after[name][0], before[name][0])
    assert after["step"] == before["step"]


def test_what_it_cannot_change_is_said_and_stays() -> None:
    found = collection("bags", embcomp.GraphHash(OLD))
    before = {name: value.clone() for name, value in found.state_dict().items() if isinstance(value, torch.Tensor)}
    for wrong, says in (
        ({}, r"name one of the collection's tables, \['film', 'user'\]"),
        ({"table": "user"}, "for one of HashingTrick"),
    ):
        with pytest.raises(ValueError, match=says):
            remap_(found, NEW, **wrong)
    with pytest.raises(ValueError, match="the old map 3, the new one 4"):
        remap_(found, ClusterMap.of([0], 4), table="film")
    with pytest.raises(ValueError, match="not the model"):
        remap_(Model(found), NEW)
    with pytest.raises(ValueError, match="leave it out"):
        remap_(embcomp.nn.CompressedEmbedding(6, 4, embcomp.GraphHash(OLD)), NEW, table="film")
    after = found.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    fuse_(found, optimizer=torch.optim.SGD)
    found.branches["bags"].collection = nn.Identity()  # in the place of what sharding puts there
    with pytest.raises(ValueError, match="load its state into the collection as it was before"):
        remap_(found, NEW, table="film")


WRAPPED = {
    "few bits": lambda of: embcomp.LowBit(bits=4, of=of),
    "a step for each row": lambda of: embcomp.LowBit(bits=4, step="row", of=of),
    "low rank": lambda of: embcomp.LowRank(rank=4, of=of),
    "few bits of low rank": lambda of: embcomp.LowBit(bits=4, of=embcomp.LowRank(rank=4, of=of)),
    "nested": lambda of: embcomp.Nested(width=4, of=of),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("where", ["torch", "torchrec"])
def test_a_map_inside_of_wrappers_grows(where: str, wrap) -> None:
    longer = ClusterMap.of([0, 0, 1, 0, 2, 2, 1], 3)  # nothing moves; id 3 has a row now, id 6 is new
    if where == "torch":
        module, table = embcomp.nn.CompressedEmbedding(6, 4, wrap(embcomp.GraphHash(OLD))), None
        fresh = embcomp.nn.CompressedEmbedding(7, 4, wrap(embcomp.GraphHash(longer)))
    else:
        module, table = collection("bags", wrap(embcomp.GraphHash(OLD))), "film"
        fresh = None

    def vectors(ids: list[int]) -> torch.Tensor:
        return module(torch.tensor(ids)) if where == "torch" else module(batch(ids, ids))["film"]

    stay = [0, 1, 2, 4, 5]
    before = vectors(stay)
    remap_(module, longer, table=table)
    torch.testing.assert_close(vectors(stay), before)
    torch.testing.assert_close(vectors([3, 6]), vectors([0, 2]))
    if fresh is not None:  # saved under the new map, and loaded into what is made for it
        fresh.load_state_dict(module.state_dict())
        assert torch.equal(fresh(torch.arange(7)), module(torch.arange(7)))


def test_a_mixture_inside_of_wrappers_grows() -> None:
    rows, weights = torch.tensor([[0, 1], [2, 0], [1, 2], [0, 0], [2, 1], [2, 2]]), torch.rand(6, 2) + 0.1
    old = Mixture.of(rows, weights, OLD)
    method = embcomp.LowBit(bits=4, of=embcomp.SoftGraphHash(OLD, weights=old, k=2))
    module = embcomp.nn.CompressedEmbedding(6, 4, method)
    before = module(torch.arange(6))
    more = torch.cat([rows, torch.tensor([[1, 1]])]), torch.cat([weights, torch.ones(1, 2)])
    longer = Mixture.of(*more, ClusterMap.of([0, 0, 1, -1, 2, 2, 1], 3))
    remap_(module, longer)
    torch.testing.assert_close(module(torch.arange(6)), before)
    assert module(torch.tensor([6])).shape == (1, 4)
    again = embcomp.nn.CompressedEmbedding(
        7,
        4,
        embcomp.LowBit(bits=4, of=embcomp.SoftGraphHash(ClusterMap.of([0, 0, 1, -1, 2, 2, 1], 3), weights=longer, k=2)),
    )
    again.load_state_dict(module.state_dict())
