"""torch.fx, torch.compile and torch.export on the drop-ins."""

import warnings
from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.export import Dim, ShapesCollection, export
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embcomp
from embcomp.testing.example import Example
from embcomp.testing.examples import EXAMPLES, KINDS
from embcomp.torchrec import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection, fuse_
from tests.torchrec.batches import RAGGED, as_tables, bag_tables, batch, sequence_tables

every_method = pytest.mark.parametrize("example", EXAMPLES, ids=str)


def small(example, kind: str) -> tuple[nn.Module, list[str]]:
    """One table, and a feature of the batch that it does not read: little to compile."""
    configs = (bag_tables() if kind == "bags" else sequence_tables())[1:2]
    configs[0].feature_names = ["film"]
    method = example.make(as_tables(configs))
    if kind == "bags":
        return CompressedEmbeddingBagCollection(configs, {"*": method}), ["user", "film"]
    return CompressedEmbeddingCollection(configs, {"*": method}), ["user", "film"]


def three(examples: Sequence[Example], kind: str) -> tuple[nn.Module, list[str]]:
    """A table and a feature for each example, and a feature that is not read: one graph takes less time than three."""
    names = [f"film{i}" for i in range(len(examples))]
    settings = {"num_embeddings": 33, "embedding_dim": 16}
    configs = [
        EmbeddingBagConfig(name=f"{name}s", feature_names=[name], pooling=PoolingType.MEAN, **settings)
        if kind == "bags"
        else EmbeddingConfig(name=f"{name}s", feature_names=[name], **settings)
        for name in names
    ]
    made = zip(configs, examples, strict=True)
    methods = {config.name: example.make(as_tables([config])) for config, example in made}
    make = CompressedEmbeddingBagCollection if kind == "bags" else CompressedEmbeddingCollection
    return make(configs, methods), ["user", *names]


LENGTHS = (  # [features][bags]
    [[2, 0, 1], [0, 3, 1], [1, 1, 0], [4, 0, 2]],
    [[0, 1, 0], [1, 1, 0], [0, 0, 1], [3, 0, 0]],
    [[5, 0, 7], [1, 1, 1], [0, 9, 3], [2, 2, 2]],
)


def ends_of(features: KeyedJaggedTensor) -> list[int]:
    """Where the ids of each feature end."""
    return features.lengths().view(len(features.keys()), -1).sum(1).cumsum(0).tolist()


def values_of(result) -> torch.Tensor:
    return torch.cat([jagged.values() for jagged in result.values()]) if isinstance(result, dict) else result.values()


def bare(features: KeyedJaggedTensor) -> KeyedJaggedTensor:
    """Values and lengths alone: what has been computed and kept would become inputs of the exported program."""
    return KeyedJaggedTensor(features.keys(), features.values(), lengths=features.lengths())


@pytest.mark.parametrize("start", range(0, len(KINDS), 3))
def test_compiles_whole(start):
    """Three methods a graph, a table each."""
    torch._dynamo.reset()
    module, keys = three(KINDS[start : start + 3], "bags")
    compiled = torch.compile(module, fullgraph=True, backend="eager", dynamic=True)
    for lengths in LENGTHS:
        features = batch(lengths[: len(keys)], keys)
        mine, theirs = values_of(compiled(bare(features))), values_of(module(features))
        torch.testing.assert_close(mine, theirs)
    signal = torch.randn_like(theirs)
    parameters = list(module.parameters())
    for a, b in zip(
        torch.autograd.grad(mine, parameters, signal), torch.autograd.grad(theirs, parameters, signal), strict=True
    ):
        torch.testing.assert_close(a, b)
    for name, end in zip(keys[1:], ends_of(features)[1:], strict=True):
        wrong = batch(lengths[: len(keys)], keys)
        wrong.values()[end - 1] = 33
        with pytest.raises(RuntimeError, match=f"{name}s"):
            compiled(bare(wrong))


@pytest.mark.parametrize("start", range(0, len(KINDS), 3))
def test_exports_with_any_number_of_ids(start):
    module, keys = three(KINDS[start : start + 3], "sequences")
    features = bare(batch(LENGTHS[0][: len(keys)], keys))
    shapes = ShapesCollection()
    shapes[features.values()] = {0: Dim.DYNAMIC}
    program = export(module.eval(), (features,), dynamic_shapes=shapes, strict=False).module()
    for lengths in LENGTHS:
        features = bare(batch(lengths[: len(keys)], keys))
        torch.testing.assert_close(values_of(program(features)), values_of(module(features)))
    for name, end in zip(keys[1:], ends_of(features)[1:], strict=True):
        wrong = batch(lengths[: len(keys)], keys)
        wrong.values()[end - 1] = 33
        with pytest.raises(RuntimeError, match=f"{name}s"):
            program(bare(wrong))


class _Wrapped(nn.Module):
    """What a server has: plain tensors in, plain tensors out."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.module(KeyedJaggedTensor(["user", "friend", "film", "tag"], ids, lengths=lengths)).values()


def test_exports_a_whole_collection_and_loads_it(tmp_path):
    methods = {
        "users": embcomp.UnifiedEmbedding(rows=9, chunk_dim=4),
        "films": embcomp.QuotientRemainder(),
        "tags": embcomp.DoubleHash(rows=5),
    }
    module = _Wrapped(CompressedEmbeddingBagCollection(bag_tables(), methods)).eval()
    features = batch(RAGGED)
    dynamic = {"ids": {0: Dim.DYNAMIC}, "lengths": None}
    exported = export(module, (features.values(), features.lengths()), dynamic_shapes=dynamic, strict=False)
    torch.export.save(exported, tmp_path / "program.pt2")
    program = torch.export.load(tmp_path / "program.pt2").module()
    for seed, lengths in enumerate((RAGGED, [[3, 3, 3], [9, 0, 1], [1, 1, 1], [0, 1, 0]])):
        features = batch(lengths, seed=seed)
        expected = module(features.values(), features.lengths())
        torch.testing.assert_close(program(features.values(), features.lengths()), expected)


class _Tracer(torch.fx.Tracer):
    """Encoders, torchrec's collections and what puts their results together are leaves, as in a training pipeline."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        parts = (EmbeddingBagCollection, EmbeddingCollection)
        return type(m) in parts or module_qualified_name.rpartition(".")[2] in ("encoder", "assemble", "decode")


@pytest.mark.parametrize("kind", ["bags", "sequences"])
@every_method
def test_fx_sees_encoder_collection_and_assembly(example, kind):
    configs = bag_tables() if kind == "bags" else sequence_tables()
    make = CompressedEmbeddingBagCollection if kind == "bags" else CompressedEmbeddingCollection
    module = make(configs, {"*": example.make(as_tables(configs))})
    graph = _Tracer().trace(module)
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    parts = [
        f"branches.{name}.{part}"
        for name, branch in module.branches.items()
        for part in ("encoder", "collection", *([] if branch.decode is None else ["decode"]))
    ]
    assert calls == [*parts, "assemble"]
    for node in graph.nodes:  # between the batch and a collection there is the encoder alone
        if node.op == "call_module" and node.target.endswith(".collection"):
            (encoder,) = node.all_input_nodes
            assert encoder.target == node.target.replace(".collection", ".encoder")
            assert [n.op for n in encoder.all_input_nodes] == ["placeholder"]
    traced = torch.fx.GraphModule(module, graph)
    torch.testing.assert_close(values_of(traced(batch(RAGGED))), values_of(module(batch(RAGGED))))


@every_method
@pytest.mark.parametrize("kind", ["bags", "sequences"])
def test_symbolic_trace_of_a_model_as_of_torchrec(example, kind):
    """Plain `symbolic_trace`, which enters everything that is no layer of torch; the rows stay parameters."""
    module, keys = small(example, kind)
    model = nn.Sequential(module)
    traced = torch.fx.symbolic_trace(model)
    features = batch(RAGGED, keys)
    torch.testing.assert_close(values_of(traced(features)), values_of(model(features)))
    assert {name for name, _ in traced.named_parameters()} == {name for name, _ in model.named_parameters()}


class Scorer(nn.Module):
    def __init__(self, reads_weight: bool) -> None:
        super().__init__()
        self.item = nn.Embedding(300, 8)
        self.tags = nn.EmbeddingBag(300, 8)
        self.out = nn.Linear(8, 300)
        self.out.weight = self.item.weight
        self.reads_weight = reads_weight

    def forward(self, ids):
        vectors = self.item(ids) + self.tags(input=ids.unsqueeze(1))
        return vectors @ self.item.weight.T if self.reads_weight else self.out(vectors)


def test_symbolic_trace_of_torch_drop_ins():
    model, ids = Scorer(reads_weight=False), torch.tensor([1, 2])
    embcomp.compress_(model, {"*": embcomp.DoubleHash(rows=20)})
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(ids), model(ids))
    traced(ids).sum().backward()
    assert model.item.stores[0].weight.grad is not None
    with pytest.raises(ValueError, match="one node of a graph: trace a module that holds it"):
        torch.fx.symbolic_trace(model.item)
    other = Scorer(reads_weight=True)
    embcomp.compress_(other, {"*": embcomp.DoubleHash(rows=20)})
    with pytest.raises(RuntimeError, match=r"'item': torch.fx.symbolic_trace would keep its full weight as a constant"):
        torch.fx.symbolic_trace(other)
    recorded = torch.fx.experimental.proxy_tensor.make_fx(lambda ids: other(ids))(ids)  # makes no constant of it
    torch.testing.assert_close(recorded(ids), other(ids))


@pytest.mark.filterwarnings("ignore::UserWarning")  # torchrec
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("kind", ["bags", "sequences"])
def test_torchscript_compiles_torchrec_and_is_refused_by_name_for_ours(kind, fused):
    make = EmbeddingBagCollection if kind == "bags" else EmbeddingCollection
    torch.jit.script(make(tables=bag_tables() if kind == "bags" else sequence_tables()))
    model = nn.Sequential(small(KINDS[0], kind)[0])
    graph = torch.fx.symbolic_trace(model)
    if fused:
        fuse_(model, optimizer=torch.optim.SGD)
    for module in (model, graph):
        with pytest.raises(RuntimeError, match=r"torch\.jit\.script cannot compile .*torch\.export"):
            torch.jit.script(module)


def test_torchscript_of_torch_drop_ins():
    """Not by `script`; `trace` drops checks, and a warning says so."""
    model, ids = Scorer(reads_weight=False), torch.tensor([1, 2])
    embcomp.compress_(model, {"*": embcomp.DoubleHash(rows=20)})
    for part in (model, model.item, model.tags, model.out):
        with pytest.raises(RuntimeError, match=r"torch\.jit\.script cannot compile"):
            torch.jit.script(part)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        traced = torch.jit.trace(model.item, (ids,))
    assert any(
        w.category is torch.jit.TracerWarning and "'item': torch.jit.trace drops the check" in str(w.message)
        for w in said
    )
    torch.testing.assert_close(traced(torch.tensor([5, 7, 299])), model.item(torch.tensor([5, 7, 299])))
