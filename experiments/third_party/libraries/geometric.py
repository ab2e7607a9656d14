"""PyTorch Geometric: LightGCN."""

import importlib

import torch
from torch.nn import functional as F

from experiments.third_party.case import BATCH, DIM, Build, Case


def models() -> dict[str, Build]:
    """Return LightGCN, which reads the whole table at each step."""
    library = importlib.import_module("torch_geometric.nn.models")

    def build() -> Case:
        model = library.LightGCN(200, DIM, num_layers=2)
        edges = torch.stack([torch.randint(0, 100, (300,)), torch.randint(100, 200, (300,))])
        edges = torch.cat([edges, edges.flip(0)], dim=1)
        pairs = edges[:, :BATCH]
        return Case(model, lambda m: -F.logsigmoid(m(edges, pairs)).mean())

    return {"LightGCN": build}
