"""Tables, batches and a slow, plain oracle for the tests of embcomp.torchrec."""

from collections.abc import Mapping, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embcomp import Table
from embcomp.methods import Method
from embcomp.nn import CompressedEmbedding
from embcomp.nn.stores import PlainStore
from embcomp.testing.example import Example
from embcomp.torchrec import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection
from embcomp.torchrec.holders import stores_of

FEATURES = ["user", "friend", "film", "tag"]
RAGGED = [[2, 0, 1], [0, 3, 0], [1, 1, 4], [0, 2, 0]]  # lengths [features][bags]
FEWEST_IDS = 12  # of all tables: any of them takes these ids


def bag_tables(**settings) -> list[EmbeddingBagConfig]:
    """Two features on one table, two tables on one feature (`user`), sums and means (where `pooling` says no other)."""
    mean = settings.pop("pooling", PoolingType.MEAN)
    return [
        EmbeddingBagConfig(
            name="users", num_embeddings=20, embedding_dim=8, feature_names=["user", "friend"], **settings
        ),
        EmbeddingBagConfig(
            name="films", num_embeddings=33, embedding_dim=16, feature_names=["film", "user"], pooling=mean, **settings
        ),
        EmbeddingBagConfig(name="tags", num_embeddings=12, embedding_dim=8, feature_names=["tag"], **settings),
    ]


def sequence_tables(**settings) -> list[EmbeddingConfig]:
    """The same for sequences, where torchrec wants one width."""
    return [
        EmbeddingConfig(name="users", num_embeddings=20, embedding_dim=8, feature_names=["user", "friend"], **settings),
        EmbeddingConfig(name="films", num_embeddings=33, embedding_dim=8, feature_names=["film", "user"], **settings),
        EmbeddingConfig(name="tags", num_embeddings=12, embedding_dim=8, feature_names=["tag"], **settings),
    ]


def as_tables(configs: Sequence[EmbeddingBagConfig] | Sequence[EmbeddingConfig]) -> list[Table]:
    return [Table(config.name, config.num_embeddings, config.embedding_dim) for config in configs]


def batch(lengths: Sequence[Sequence[int]], keys: Sequence[str] = tuple(FEATURES), **settings) -> KeyedJaggedTensor:
    """Random ids for `lengths` [features][bags]. Settings: weighted, seed, most (ids are below), ids, lengths_dtype."""
    random = torch.Generator().manual_seed(settings.get("seed", 0))
    flat = torch.tensor(lengths, dtype=settings.get("lengths_dtype", torch.int64)).reshape(-1)
    size = int(flat.sum())
    ids = torch.randint(0, settings.get("most", FEWEST_IDS), (size,), generator=random)
    weights = torch.rand(size, generator=random) + 0.5 if settings.get("weighted") else None
    return KeyedJaggedTensor(
        keys=list(keys), values=ids.to(settings.get("ids", torch.int64)), weights=weights, lengths=flat
    )


@st.composite
def batch_lengths(draw: st.DrawFn, features: int = len(FEATURES)) -> list[list[int]]:
    """Lengths of 1 to 5 bags for each feature; empty bags are common."""
    bags = draw(st.integers(1, 5))
    bag = st.integers(0, 4)
    return draw(st.lists(st.lists(bag, min_size=bags, max_size=bags), min_size=features, max_size=features))


def singles(method: Method, tables: Sequence[Table], stores: Mapping[str, Tensor]) -> dict[str, CompressedEmbedding]:
    """For each table a plain module that reads the given rows (by autograd, so that gradients reach them)."""
    plan = method.plan(tables)
    modules = {name: PlainStore(store) for name, store in plan.stores.items()}
    assert modules.keys() == stores.keys()
    for name, module in modules.items():
        assert module.weight.shape == stores[name].shape
        module.weight = stores[name]  # pyright: ignore[reportAttributeAccessIssue]
    return {part.table.name: CompressedEmbedding.from_plan(plan, part, modules) for part in plan.tables}


def outputs_of(configs: Sequence[EmbeddingBagConfig] | Sequence[EmbeddingConfig]) -> list[tuple[str, str, int]]:
    """Key, feature and table number of each output, by torchrec's own rule for keys."""
    names = get_embedding_names_by_table(list(configs))  # pyright: ignore[reportArgumentType]
    return [
        (key, feature, i)
        for i, config in enumerate(configs)
        for key, feature in zip(names[i], config.feature_names, strict=True)
    ]


def pooled_one_by_one(
    look_up: Mapping[str, torch.nn.Module],
    configs: Sequence[EmbeddingBagConfig],
    features: KeyedJaggedTensor,
    weighted: bool = False,
) -> dict[str, Tensor]:
    """Bags by a Python loop over single ids."""
    result = {}
    for key, feature, number in outputs_of(configs):
        config, jagged = configs[number], features[feature]
        bags, start = [], 0
        for length in jagged.lengths().tolist():
            vectors = look_up[config.name](jagged.values()[start : start + length].long()).float()
            if weighted:
                vectors = vectors * jagged.weights()[start : start + length].unsqueeze(-1)
            total = vectors.sum(0)
            bags.append(total / max(length, 1) if config.pooling == PoolingType.MEAN else total)
            start += length
        result[key] = torch.stack(bags)
    return result


def look_ups(collection, configs, method: Method, open_ids: bool = False) -> dict[str, CompressedEmbedding]:
    """`singles` over the rows of a compressed collection."""
    tables = [
        Table(table.name, None if open_ids else table.num_embeddings, table.embedding_dim)
        for table in as_tables(configs)
    ]
    made = singles(method, tables, stores_of(collection))
    for output in collection.assemble.outputs:  # and what the combiners of the collection learn
        made[output.plan.table.name].combiner.load_state_dict(output.plan.combiner.state_dict())
    return made


def bags(example: Example, weighted: bool = False, **config):
    """A compressed collection, its tables and its method."""
    configs = bag_tables(**({"pooling": PoolingType.SUM} if weighted else {}), **config)
    method = example.make(as_tables(configs))
    return CompressedEmbeddingBagCollection(configs, {"*": method}, is_weighted=weighted), configs, method


def sequences(example: Example, **settings):
    configs = sequence_tables()
    method = example.make(as_tables(configs))
    return CompressedEmbeddingCollection(configs, {"*": method}, **settings), configs, method


def assert_close(actual: dict, expected: dict, **tolerance) -> None:
    assert list(actual) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, msg=lambda text, key=key: f"{key}: {text}", **tolerance)
