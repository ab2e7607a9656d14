"""`python -m experiments bench loader`: the time to load a batch, over the time to train DLRM on it.

A ratio of at most 0.33 means that the loader reads three times the rows per second that the model consumes. Whole
epochs are timed, because the loader prepares many batches at once. The data are MovieLens-1M if `EMBCOMP_DATA` holds
it, else synthetic clicks. The optimizer is fused row-wise Adagrad, the fastest one here.
"""

from itertools import count

import torch
from rich.console import Console
from torch.nn import functional as F
from torchrec import EmbeddingBagConfig
from torchrec.optim import RowWiseAdagrad

import data
import embcomp
from data.registry import has_files
from embcomp.torchrec import CompressedEmbeddingBagCollection, fuse_
from experiments.bench import BenchRow
from experiments.bench.timing import paired
from experiments.config import DataConfig
from experiments.tasks.datasets import load_data
from recsys_models import DLRM

DIM = 16


def run(console: Console, *, batch_size: int = 4096, rounds: int = 5) -> list[BenchRow]:
    """Compare an epoch of the loader, shuffled, with the same number of training steps."""
    clicks = load_data(data.load, DataConfig(name="ml-1m" if has_files("ml-1m") else "synthetic"))
    console.log(f"data: {clicks.name}, {len(clicks.schema.features)} features, batches of {batch_size}")
    loaders = (clicks.loader("train", batch_size, shuffle=True, epoch=epoch, drop_last=True) for epoch in count())
    first = next(loaders)
    model, batch, steps = _model(clicks), next(iter(first)), len(first)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], fused=True)

    def train() -> None:
        for _ in range(steps):
            loss = F.binary_cross_entropy_with_logits(model(batch.dense, batch.sparse), batch.label)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def load() -> None:
        for _ in next(loaders):
            pass

    name = f"DLRM, {steps} training steps of {batch_size} rows"
    return paired({name: train, "loader, as many rows": load}, against=name, rounds=rounds, warmup=1)


def _model(clicks: data.ClickData) -> DLRM:
    features = clicks.schema.features
    tables = [
        EmbeddingBagConfig(
            name=f.name, feature_names=[f.name], num_embeddings=f.num_embeddings or 1_000_000, embedding_dim=DIM
        )
        for f in features
    ]
    collection = CompressedEmbeddingBagCollection(tables, {"*": embcomp.Full()})
    fuse_(collection, optimizer=RowWiseAdagrad, optimizer_kwargs={"lr": 0.01})
    names = [f.name for f in features]
    return DLRM(collection, feature_names=names, dims=DIM, num_dense=len(clicks.schema.dense))
