"""What every model does, and each model against its paper's formula written out."""

import copy
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor

import embcomp
from embcomp.torchrec import CompressedEmbeddingBagCollection
from recsys_models import build

NAMES = ["user", "item", "zip"]
MIXED = {"user": 4, "item": 8, "zip": 12}
IDS = 20

# Model, options, has a second collection, takes mixed widths.
VARIANTS = {
    "DLRM": ("DLRM", {"bottom_hidden": [6]}, False, False),
    "DCN": ("DCN", {"cross_layers": 2}, False, True),
    "DCN-stacked": ("DCN", {"structure": "stacked"}, False, True),
    "DCNv2": ("DCNv2", {"cross_layers": 2}, False, True),
    "DCNv2-parallel": ("DCNv2", {"structure": "parallel"}, False, True),
    "DCNv2-low-rank": ("DCNv2", {"low_rank": 3}, False, True),
    "DCNv2-mixture": ("DCNv2", {"low_rank": 3, "experts": 2}, False, True),
    "DeepFM": ("DeepFM", {}, False, False),
    "DeepFM-linear": ("DeepFM", {}, True, False),
    "WideDeep": ("WideDeep", {}, False, True),
    "WideDeep-linear": ("WideDeep", {}, True, True),
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
# What takes a while to trace: each kind of layer once.
every_layer = pytest.mark.parametrize(
    "variant", ["DLRM", "DCN", "DCNv2", "DCNv2-low-rank", "DCNv2-mixture", "DeepFM-linear", "WideDeep"]
)


def collection(names: list[str], dims: dict[str, int] | int) -> EmbeddingBagCollection:
    dims = dims if isinstance(dims, dict) else dict.fromkeys(names, dims)
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name=f"t_{name}", feature_names=[name], num_embeddings=IDS, embedding_dim=dims[name])
            for name in names
        ]
    )


def make(variant: str, *, num_dense: int = 2, seed: int = 0, **options) -> nn.Module:
    name, own_options, has_linear, mixed = VARIANTS[variant]
    torch.manual_seed(seed)
    dims = MIXED if mixed else 4
    return build(
        name,
        collection(NAMES, dims),
        feature_names=NAMES,
        dims=dims,
        num_dense=num_dense,
        linear=collection(NAMES, 4) if has_linear else None,
        **{"hidden": [8], **own_options, **options},
    )


def randomize(model: nn.Module) -> nn.Module:
    """Some parameters start at zero, where an error in their use would not show."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return model


def batch(size: int, num_dense: int = 2, seed: int = 0, max_length: int = 3) -> tuple[Tensor, KeyedJaggedTensor]:
    """Multi-hot, empty bags included."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, max_length + 1, (len(NAMES) * size,), generator=generator)
    values = torch.randint(0, IDS, (int(lengths.sum()),), generator=generator)
    return torch.rand(size, num_dense, generator=generator), KeyedJaggedTensor(NAMES, values, lengths=lengths)


class Reordered(nn.Module):
    """A collection whose keys come in another order, as table-wise sharding gives them."""

    def __init__(self, inner: nn.Module, order: list[str]) -> None:
        super().__init__()
        self.inner, self.order = inner, order

    def forward(self, sparse: KeyedJaggedTensor) -> KeyedTensor:
        columns = self.inner(sparse).to_dict()
        return KeyedTensor.from_tensor_list(self.order, [columns[name] for name in self.order])


@every_variant
@pytest.mark.parametrize("num_dense", [0, 2])
@pytest.mark.parametrize("size", [1, 5])
def test_logits_are_one_per_row(variant, num_dense, size):
    logits = make(variant, num_dense=num_dense)(*batch(size, num_dense))
    assert logits.shape == (size,)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@every_variant
def test_an_empty_batch_has_no_logits(variant):
    model = make(variant)
    # torchrec's collections do not take an empty batch, so this one stands in.
    dims = list(MIXED.values()) if VARIANTS[variant][3] else [4, 4, 4]
    model.embeddings = nn.Identity()
    model.linear = nn.Identity() if VARIANTS[variant][2] else None
    logits = model(torch.zeros(0, 2), KeyedTensor(NAMES, dims, torch.zeros(0, sum(dims))))
    assert logits.shape == (0,)


@every_variant
def test_rows_do_not_see_each_other(variant):
    model = randomize(make(variant))
    dense, sparse = batch(4)
    logits = model(dense, sparse)
    for row in range(4):
        bags = [sparse[name].to_dense()[row] for name in NAMES]
        alone = KeyedJaggedTensor(NAMES, torch.cat(bags), lengths=torch.tensor([len(bag) for bag in bags]))
        torch.testing.assert_close(model(dense[row : row + 1], alone), logits[row : row + 1])


@every_variant
def test_order_of_the_keys_does_not_matter(variant):
    model = randomize(make(variant))
    dense, sparse = batch(5)
    expected = model(dense, sparse)
    for order in (["zip", "user", "item"], ["item", "zip", "user"]):
        other = copy.deepcopy(model)
        other.embeddings = Reordered(other.embeddings, order)
        if getattr(other, "linear", None) is not None:
            other.linear = Reordered(other.linear, order)
        torch.testing.assert_close(other(dense, sparse), expected)


@every_variant
@pytest.mark.parametrize("options", [{}, {"batch_norm": True, "dropout": 0.2, "activation": "gelu"}])
def test_gradients_reach_every_parameter(variant, options):
    torch.manual_seed(0)
    model = randomize(make(variant, **options))
    model(*batch(64)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.count_nonzero() > 0, name


@every_variant
def test_a_seed_gives_the_same_model(variant):
    first, second, other = make(variant, seed=3), make(variant, seed=3), make(variant, seed=4)
    inputs = batch(5)
    assert torch.equal(first(*inputs), second(*inputs))
    assert not torch.equal(first(*inputs), other(*inputs))


@every_variant
def test_state_dict_round_trip(variant):
    model, other = make(variant, seed=0), make(variant, seed=1)
    other.load_state_dict(model.state_dict())
    inputs = batch(5)
    assert torch.equal(model(*inputs), other(*inputs))


@every_variant
def test_learns_an_interaction(variant):
    """The label is the exclusive or of two features: none alone says anything, and no sum of parts fits it."""
    users, items, zips = torch.tensor([(u, i, z) for u in range(4) for i in range(4) for z in range(4)]).T
    label = ((users + items) % 2).float()
    sparse = KeyedJaggedTensor(NAMES, torch.cat((users, items, zips)), lengths=torch.ones(3 * 64, dtype=torch.int64))
    dense = torch.rand(64, 2, generator=torch.Generator().manual_seed(0))
    model = make(variant, hidden=[32])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(80):
        loss = nn.functional.binary_cross_entropy_with_logits(model(dense, sparse), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert torch.equal(model(dense, sparse) > 0, label.bool())


@every_variant
def test_trains_on_one_unified_table(variant):
    """Compressed collections stand in for torchrec's; features keep the widths that their look-ups give."""
    name, options, has_linear, mixed = VARIANTS[variant]
    dims = MIXED if mixed else dict.fromkeys(NAMES, 4)

    def compressed(dims: dict[str, int]) -> CompressedEmbeddingBagCollection:
        tables = collection(NAMES, dims).embedding_bag_configs()
        lookups = {f"t_{name}": dim // 4 for name, dim in dims.items()}
        return CompressedEmbeddingBagCollection(
            tables, {"*": embcomp.UnifiedEmbedding(rows=30, chunk_dim=4, lookups=lookups)}
        )

    model = build(
        name,
        compressed(dims),
        feature_names=NAMES,
        dims=dims,
        num_dense=2,
        linear=compressed(dict.fromkeys(NAMES, 4)) if has_linear else None,
        **{"hidden": [8], **options},
    )
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    logits = model(*batch(64))
    assert logits.shape == (64,)
    # Twice, because what starts at zero may hold back the gradient of the first step.
    for _ in range(2):
        model(*batch(64)).exp().sum().backward()
        optimizer.step()
    for n, p in model.named_parameters():
        assert not torch.equal(p, before[n]), n


@every_layer
def test_compiles_without_a_graph_break(variant):
    model = randomize(make(variant))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    inputs = batch(5)
    expected = model(*inputs)
    torch.testing.assert_close(compiled(*inputs), expected)
    gradients = [torch.autograd.grad(f(*inputs).sum(), list(model.parameters())) for f in (model, compiled)]
    torch.testing.assert_close(*gradients)
    torch._dynamo.reset()


@every_layer
def test_exports_with_a_dynamic_batch(variant):
    model = randomize(make(variant)).eval()
    auto = torch.export.Dim.AUTO
    # A KeyedJaggedTensor is flattened to values, weights, lengths, offsets and two fields for uneven strides.
    shapes = ({0: auto}, [{0: auto}, None, {0: auto}, None, None, None])
    exported = torch.export.export(model, batch(5), dynamic_shapes=shapes).module()
    for size in (2, 9, 64):
        inputs = batch(size, seed=size)
        torch.testing.assert_close(exported(*inputs), model(*inputs))


@every_variant
def test_torch_fx_sees_submodules_as_steps(variant):
    """As torchrec's training pipelines trace a model; what cannot be traced is silently not pipelined."""

    class Shallow(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return not isinstance(m, nn.ModuleList)

    model = randomize(make(variant))
    traced = torch.fx.GraphModule(model, Shallow().trace(model))
    steps = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert {"embeddings", "inputs"} <= steps
    inputs = batch(5)
    torch.testing.assert_close(traced(*inputs), model(*inputs))


# --- each model against its formula, row by row ---


def vectors(collection: nn.Module, sparse: KeyedJaggedTensor, row: int) -> list[Tensor]:
    """Embedded features of one row, summed up from the tables."""
    return [collection.embedding_bags[f"t_{name}"].weight[sparse[name].to_dense()[row]].sum(dim=0) for name in NAMES]


def mlp(module: nn.Sequential, x: Tensor) -> Tensor:
    """Linear layers with ReLU between; the last is plain where the module ends in one."""
    for layer in module:
        x = layer.weight @ x + layer.bias if isinstance(layer, nn.Linear) else x.clamp(min=0)
    return x


def dlrm(model, dense, sparse, row):
    bottom = mlp(model.bottom, dense[row])
    pairs = [a.dot(b) for a, b in combinations([bottom, *vectors(model.embeddings, sparse, row)], 2)]
    return mlp(model.top, torch.cat((bottom, torch.stack(pairs))))


def dcn(model, dense, sparse, row):
    x0 = torch.cat((*vectors(model.embeddings, sparse, row), dense[row]))
    x = x0
    for layer in model.cross:
        x = torch.outer(x0, x) @ layer.weight.weight[0] + layer.bias + x
    return model.output.weight[0] @ torch.cat((x, mlp(model.deep, x0))) + model.output.bias


def dcnv2(model, dense, sparse, row):
    x0 = torch.cat((*vectors(model.embeddings, sparse, row), dense[row]))
    x = x0
    for layer in model.cross:
        x = x0 * (layer.weight.weight @ x + layer.weight.bias) + x
    return model.output.weight[0] @ mlp(model.deep, x) + model.output.bias


def deepfm(model, dense, sparse, row):
    embedded = vectors(model.embeddings, sparse, row)
    if model.linear is None:
        first_order = model.first_order.weight @ torch.cat((*embedded, dense[row]))
    else:
        wide = sum(v.sum() for v in vectors(model.linear, sparse, row))
        first_order = model.first_order.weight @ dense[row] + wide
    fields = [*embedded, *(x * v for x, v in zip(dense[row], model.dense_vectors, strict=True))]
    second_order = sum(a.dot(b) for a, b in combinations(fields, 2))
    return first_order + model.first_order.bias + second_order + mlp(model.deep, torch.cat(fields))


def wide_deep(model, dense, sparse, row):
    x = torch.cat((*vectors(model.embeddings, sparse, row), dense[row]))
    if model.linear is None:
        wide = model.wide.weight @ x
    else:
        wide = model.wide.weight @ dense[row] + sum(v.sum() for v in vectors(model.linear, sparse, row))
    return wide + model.wide.bias + mlp(model.deep, x)


@pytest.mark.parametrize(
    ("variant", "formula"),
    [
        ("DLRM", dlrm),
        ("DCN", dcn),
        ("DCNv2", dcnv2),
        ("DeepFM", deepfm),
        ("DeepFM-linear", deepfm),
        ("WideDeep", wide_deep),
        ("WideDeep-linear", wide_deep),
    ],
)
def test_the_formula_of_the_paper(variant, formula):
    model = randomize(make(variant))
    dense, sparse = batch(6)
    expected = torch.cat([formula(model, dense, sparse, row) for row in range(6)])
    torch.testing.assert_close(model(dense, sparse), expected, rtol=1e-4, atol=1e-5)


def test_the_wide_part_may_hold_features_of_its_own():
    """Crossed features are known to the second collection alone."""
    torch.manual_seed(0)
    linear = collection([*NAMES, "user x item"], 4)
    model = randomize(
        build("WideDeep", collection(NAMES, 4), feature_names=NAMES, dims=4, num_dense=0, linear=linear, hidden=[8])
    )
    ids = torch.tensor([1, 1, 2, 3, 4, 4, 5, 6])
    logits = []
    for crossed in (torch.tensor([5, 6]), torch.tensor([5, 7])):
        sparse = KeyedJaggedTensor(
            [*NAMES, "user x item"], torch.cat((ids[:6], crossed)), lengths=torch.ones(8, dtype=torch.int64)
        )
        logits.append(model(torch.zeros(2, 0), sparse))
    rows = linear.embedding_bags["t_user x item"].weight
    torch.testing.assert_close(logits[1] - logits[0], torch.stack((torch.zeros(()), (rows[7] - rows[6]).sum())))
