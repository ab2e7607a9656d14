"""Tables of integers without a float copy, in collections of torchrec: they read, train, save and serve as others."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad

import embcomp
from embcomp import LowBit, Table
from embcomp.checkpoints import Checkpoints
from embcomp.codecs.integers import Integers
from embcomp.holders import coded_tables
from embcomp.nn import CompressedEmbedding
from embcomp.torchrec import (
    CompressedEmbeddingBagCollection,
    CompressedEmbeddingCollection,
    fuse_,
    fused_optimizer,
    shard,
)
from embcomp.torchrec.fused.integers import IntegerTable
from tests.torchrec.batches import RAGGED, bag_tables, batch, sequence_tables

INTEGERS = LowBit(bits=8, copy="none")
METHODS = {
    "own rows": INTEGERS,
    "4 bits": LowBit(bits=4, copy="none"),
    "unified": LowBit(bits=8, copy="none", of=embcomp.UnifiedEmbedding(rows=30, chunk_dim=8)),
    "sum": LowBit(bits=8, copy="none", of=embcomp.MultiHash(rows=9)),
    "product": LowBit(bits=4, copy="none", of=embcomp.QuotientRemainder()),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


class Model(nn.Module):
    def __init__(self, method: embcomp.Method = INTEGERS, weighted: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        pooling = {"pooling": PoolingType.SUM} if weighted else {}
        self.c = CompressedEmbeddingBagCollection(bag_tables(**pooling), {"*": method}, is_weighted=weighted)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        return self.c(features).values()


def fused(model: nn.Module, lr: float = 0.1, **settings) -> nn.Module:
    return fuse_(model, optimizer=RowWiseAdagrad, optimizer_kwargs={"lr": lr}, **settings)


def steps(model: nn.Module, count: int) -> list[float]:
    optimizer, losses = fused_optimizer(model), []
    features = batch(RAGGED, seed=3)
    for _ in range(count):
        loss = (model(features) - 1.0).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def rows(model: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight, _ in coded_tables(model)]


@every_method
def test_vectors_are_those_of_the_float_method_with_the_same_rows(method: LowBit) -> None:
    """Bags, weights and combiners are none of the integers' business."""
    for weighted in (False, True):
        mine = Model(method, weighted)
        plain = Model(method.of, weighted)
        held = {name: codec.values(weight) for name, (weight, codec) in _named(mine).items()}
        with torch.no_grad():
            for name, weight in _weights(plain).items():
                weight.copy_(held[name])
        features = batch(RAGGED, seed=1, weighted=weighted)
        torch.testing.assert_close(mine(features), plain(features))


def _named(model: Model) -> dict:
    branches = model.c.branches.values()
    return {
        name: (table.weight.detach(), table.codec) for b in branches for name, table in b.collection.embeddings.items()
    }


def _weights(model: Model) -> dict[str, Tensor]:
    found = {}
    for branch in model.c.branches.values():
        held = branch.collection.embeddings if branch.sequences else branch.collection.embedding_bags
        found |= {name: table.weight for name, table in held.items()}
    return found


@pytest.mark.parametrize(
    ("name", "kind", "lr"),
    [("own rows", torch.optim.SGD, 2.0), ("4 bits", RowWiseAdagrad, 0.1), ("unified", RowWiseAdagrad, 0.1)],
)
def test_they_learn_as_floats_do(name: str, kind: type, lr: float) -> None:
    gains, method = [], METHODS[name]
    for each in (method, method.of):
        model = fuse_(Model(each), optimizer=kind, optimizer_kwargs={"lr": lr})
        losses = steps(model, 30)
        gains.append(losses[0] - losses[-1])
    assert gains[0] > (0.9 if method.bits == 8 else 0.5) * gains[1] > 0


def test_sequences_and_the_gradient_of_weights(engine) -> None:
    sequences = CompressedEmbeddingCollection(sequence_tables(), {"*": INTEGERS})
    model = fused(nn.ModuleDict({"c": sequences}))
    before = rows(model)
    result = sequences(batch(RAGGED, seed=1))
    sum(jagged.values().square().sum() for jagged in result.values()).backward()
    assert all(not torch.equal(*pair) for pair in zip(rows(model), before, strict=True))

    weighted, features = fused(Model(weighted=True)), batch(RAGGED, seed=1, weighted=True)
    grad = features.weights().requires_grad_()
    float_rows = {name: codec.values(weight) for name, (weight, codec) in _named(weighted).items()}
    plain = Model(embcomp.Full(), True)
    with torch.no_grad():
        for name, weight in _weights(plain).items():
            weight.copy_(float_rows[name])
    (expected,) = torch.autograd.grad(plain(features).square().sum(), grad)
    (found,) = torch.autograd.grad(weighted(features).square().sum(), grad)
    torch.testing.assert_close(found, expected)


def test_bytes() -> None:
    tables = [Table("a", 1000, 10), Table("b", 70, 16)]
    plan = INTEGERS.plan(tables)
    assert plan.training_nbytes() == 1000 * 11 + 70 * 17
    assert plan.served_nbytes() == 1000 * 14 + 70 * 20
    assert LowBit(bits=4, copy="none").plan(tables).training_nbytes() == 1000 * 6 + 70 * 9
    configs = [EmbeddingBagConfig(name=t.name, num_embeddings=t.num_embeddings, embedding_dim=t.embedding_dim,
                                  feature_names=[t.name]) for t in tables]  # fmt: skip
    model = fused(nn.ModuleDict({"c": CompressedEmbeddingBagCollection(configs, {"*": INTEGERS})}))
    assert embcomp.training_nbytes(model) == plan.training_nbytes()
    assert embcomp.served_nbytes(model) == plan.served_nbytes()
    state = sum(state["sum"].nbytes for state in fused_optimizer(model).state.values())
    full = sum(t.num_embeddings * (4 * t.embedding_dim + 4) for t in tables)  # with the float run's own sums
    assert (embcomp.training_nbytes(model) + state) / full <= 0.32
    method = LowBit.for_budget(tables, 9_000, count="training", bits=8, copy="none", of="HashingTrick")
    assert 8_000 < method.plan(tables).training_nbytes() <= 9_000


def test_state_dicts_copies_and_pickles_are_exact() -> None:
    model, other = fused(Model()), Model()
    steps(model, 5)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(batch(RAGGED, seed=1)), model(batch(RAGGED, seed=1)))
    assert torch.equal(model.half()(batch(RAGGED, seed=1)), other(batch(RAGGED, seed=1)))  # rows are no floats
    with pytest.raises(ValueError, match="bits: saved 8, here 4"):
        Model(METHODS["4 bits"]).load_state_dict(model.state_dict())


def test_a_checkpoint_goes_on_exactly(tmp_path) -> None:
    model = fused(Model())
    saved = Checkpoints(tmp_path, model, [fused_optimizer(model)])
    steps(model, 5)
    saved.save(5)
    expected = steps(model, 5), rows(model)
    other = fused(Model())
    Checkpoints(tmp_path, other, [fused_optimizer(other)]).load()
    assert (steps(other, 5), [w.tolist() for w in rows(other)]) == (expected[0], [w.tolist() for w in expected[1]])


def test_the_export_predicts_as_the_model(tmp_path) -> None:
    tables = [
        EmbeddingBagConfig(name=name, num_embeddings=20, embedding_dim=5, feature_names=[name]) for name in ("a", "b")
    ]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = CompressedEmbeddingBagCollection(tables, {"a": INTEGERS, "b": METHODS["4 bits"]})

        def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
            return self.c(KeyedJaggedTensor(["a", "b"], values, lengths=lengths, stride=2)).values()

    net, call = fused(Net()), (torch.tensor([1, 19, 3, 3]), torch.tensor([2, 1, 0, 1]))
    for _ in range(3):
        net(*call).square().sum().backward()
    report = embcomp.export(net.eval(), tmp_path / "m.pt2", call)
    assert report.bytes_exported == embcomp.served_nbytes(net) == 20 * (5 + 4) + 10 * 5 + 20 * 4
    torch.testing.assert_close(torch.export.load(report.path).module()(*call), net(*call))


@pytest.mark.parametrize("init", ["fresh", "warm"])
def test_compress(init: str) -> None:
    torch.manual_seed(1)
    model = nn.ModuleDict({"c": EmbeddingBagCollection(bag_tables())})
    trained = model["c"].embedding_bags["films"].weight.detach().clone()
    report = embcomp.compress_(model, {"films": INTEGERS}, init=init)  # pyright: ignore[reportArgumentType]
    assert report.training_nbytes == embcomp.training_nbytes(model)
    ((weight, codec),) = coded_tables(model)
    values = codec.values(weight)
    assert values.std() == pytest.approx(float(trained.std()), rel=0.2)
    if init == "warm":
        largest = trained.abs().amax(1, keepdim=True)
        assert ((values - trained).abs() <= largest * 2 ** (2 / 8) / 127 / 2 * 1.01).all()  # half a step


def test_a_loss_scale_is_undone_and_what_overflows_changes_nothing() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    model = fused(Model(), grad_scaler=scaler)
    before = rows(model)
    scaler.scale(8 * model(batch(RAGGED, seed=1)).square().sum() + 8).backward()
    assert all(torch.equal(*pair) for pair in zip(rows(model), before, strict=True))
    twins = []
    for given in (False, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        twin = fused(Model(), grad_scaler=given)
        torch.manual_seed(5)
        loss = twin(batch(RAGGED, seed=1)).square().sum()
        (given.scale(loss) if given else loss).backward()
        twins.append(rows(twin))
    assert all(torch.equal(*pair) for pair in zip(*twins, strict=True))


def test_what_cannot_be_is_refused_by_name() -> None:
    for settings, text in (({"bits": 3}, "8 or 4 bits, got bits=3"), ({"bits": 8, "step": "row"}, "got step='row'")):
        with pytest.raises(ValueError, match=text):
            LowBit(copy="none", **settings)
    with pytest.raises(ValueError, match=r"'embedding'.*fuse_.*copy='float'"):
        CompressedEmbedding(10, 4, INTEGERS)
    with pytest.raises(ValueError, match=r"'item'.*fuse_"):
        embcomp.compress_(nn.ModuleDict({"item": nn.Embedding(10, 4)}), INTEGERS)
    untrained = Model()
    with pytest.raises(RuntimeError, match=r"films.*call embcomp.torchrec.fuse_"):
        untrained(batch(RAGGED, seed=1)).sum().backward()
    with pytest.raises(ValueError, match="RowWiseAdagrad or SGD"):
        fuse_(untrained, optimizer=torch.optim.Adagrad)
    with pytest.raises(ValueError, match=r"adam keeps a float for each value"):
        fuse_(untrained, optimizer=torch.optim.Adam)
    frozen = nn.ModuleDict({"c": EmbeddingBagCollection(bag_tables())})
    frozen.requires_grad_(False)
    with pytest.raises(ValueError, match=r"'films'.*frozen"):
        embcomp.compress_(frozen, {"films": INTEGERS}, init="warm")
    assert type(frozen["c"]) is EmbeddingBagCollection
    with pytest.raises(ValueError, match=r"fuse_ found no"):
        fused(fused(Model()))


@every_method
def test_a_gpu_is_refused_with_a_remedy(method: LowBit) -> None:
    """No GPU is needed: the tensors of a fake mode only have its device."""
    remedy = r"rows without a float copy \(copy='none'\) are trained on the CPU.*take copy='float'"
    config = EmbeddingConfig(name="item", num_embeddings=9, embedding_dim=8)
    table = IntegerTable(config, Integers(8), torch.device("cpu"))
    before = table.weight.detach().clone()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for made in (CompressedEmbeddingBagCollection, CompressedEmbeddingCollection):
            tables = bag_tables() if made is CompressedEmbeddingBagCollection else sequence_tables()
            with pytest.raises(ValueError, match=rf"tables \['.*{remedy}"):
                made(tables, {"*": method}, device="cuda")
        with pytest.raises(RuntimeError, match=remedy):
            table._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda"))
    assert torch.equal(table.weight, before)  # it stays where it was


def test_sharding_is_refused_by_name(tmp_path) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match=r"cannot shard \['users'.*copy='float'"):
            shard(Model(), optimizer=RowWiseAdagrad, optimizer_kwargs={"lr": 0.1}, device="cpu")
    finally:
        torch.distributed.destroy_process_group()
