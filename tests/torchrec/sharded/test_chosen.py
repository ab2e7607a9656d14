"""A choice of the planner on two processes: rows that FBGEMM can hold, and the vectors that it has on one."""

import pytest
import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embcomp
from embcomp.planner.choice import kind
from embcomp.torchrec import shard

IDS = {"user": 3000, "film": 2000, "tag": 700, "day": 7}


def pooled(nbytes: str, count: str) -> tuple[float, list[str]]:
    """The largest difference of the sharded vectors from those before, and the kinds of methods."""
    torch.manual_seed(0)
    tables = [EmbeddingBagConfig(name=n, num_embeddings=i, embedding_dim=16, feature_names=[n]) for n, i in IDS.items()]
    model = nn.ModuleDict({"tables": EmbeddingBagCollection(tables=tables)})
    choice = embcomp.choose(model, nbytes, count=count, widths="fbgemm")
    embcomp.compress_(model, choice.methods)
    ids = torch.cat([torch.randint(number, (64,)) for number in IDS.values()])
    batch = KeyedJaggedTensor(keys=list(IDS), values=ids, lengths=torch.ones(4 * 64, dtype=torch.int64))
    with torch.no_grad():
        before = model["tables"](batch).values()
        settings = {"optimizer": torch.optim.Adagrad, "optimizer_kwargs": {"lr": 0.1}, "device": "cpu"}
        after = shard(model, **settings).module["tables"](batch).values()
    return float((after - before).abs().max()), [kind(table.method) for table in choice.tables]


@pytest.mark.parametrize(("nbytes", "count"), [("10%", "served"), ("2%", "served"), ("20%", "training")])
def test_a_choice_is_sharded(pair, nbytes, count):
    (difference, methods), other = pair.run(pooled, nbytes, count)
    assert [difference, methods] == list(other)
    assert difference < 1e-6
    assert set(methods) != {"Full"}
