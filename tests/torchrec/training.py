"""A model, and the same steps of it with the optimizer outside and inside the backward pass."""

import copy

import pytest
import torch
from torch import nn
from torchrec.modules.embedding_configs import PoolingType
from torchrec.optim import RowWiseAdagrad

from embcomp.torchrec import CompressedEmbeddingBagCollection, fuse_, fused_optimizer
from embcomp.torchrec.fused import tables as serving
from embcomp.torchrec.fused.engines import FbgemmEngine
from tests.torchrec.batches import bag_tables

OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {"lr": 0.1}),
    "Adagrad": (torch.optim.Adagrad, {"lr": 0.1, "eps": 1e-6}),
    "RowWiseAdagrad": (RowWiseAdagrad, {"lr": 0.1, "eps": 1e-6}),
    "momentum": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "Adam": (torch.optim.Adam, {"lr": 0.02, "eps": 1e-2}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.02, "eps": 1e-2, "weight_decay": 0.1}),
}
ON_GPUS_ALONE = ("momentum", "Adam", "AdamW")
"""What FBGEMM does not have on a CPU, and what moves rows that were not read, under a dense gradient."""
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


class Model(nn.Module):
    """A collection and a head that is not linear, so that gradients depend on the rows."""

    def __init__(self, collection: nn.Module) -> None:
        super().__init__()
        self.collection = collection

    def forward(self, features):
        result = self.collection(features)
        if isinstance(result, dict):
            return torch.cat([jagged.values() for jagged in result.values()])
        return torch.cat([result[key] for key in result.keys()], dim=1)  # noqa: SIM118 (a KeyedTensor)


def bag_model(methods, weighted=False, **config) -> Model:
    configs = bag_tables(**({"pooling": PoolingType.SUM} if weighted else {}), **config)
    return Model(CompressedEmbeddingBagCollection(configs, methods, is_weighted=weighted))


def loss_of(values: torch.Tensor) -> torch.Tensor:
    signal = torch.linspace(-1, 1, values.numel()).reshape(values.shape)
    return (values * signal).sum() + values.square().sum()


def fused_twin(model: nn.Module, optimizer: str, **more) -> nn.Module:
    """The model fused, to be trained as the optimizer trains it from outside."""
    kind, kwargs = OPTIMIZERS[optimizer]
    if optimizer in ON_GPUS_ALONE:
        if serving.make_engine is FbgemmEngine:
            pytest.skip("FBGEMM has it on GPUs alone")
        more = {"lazy": False, **more}
    # Nothing scales the loss: said, because looking for a scaler takes long in a process that runs many tests.
    return fuse_(copy.deepcopy(model), optimizer=kind, optimizer_kwargs={**kwargs, **more}, grad_scaler=False)


def train_both(model: nn.Module, fused: nn.Module, optimizer: str, batches) -> torch.optim.Optimizer:
    """Steps of the unfused and the fused model on the same batches; outputs and weight gradients are compared."""
    kind, kwargs = OPTIMIZERS[optimizer]
    outside = kind(model.parameters(), **kwargs)
    others = [parameter for parameter in fused.parameters() if parameter.requires_grad]  # what is no table
    beside = kind(others, **kwargs) if others else None
    for features in batches:
        weights = features.weights_or_none()
        seen = []
        for each in (model, fused):
            if weights is not None:
                weights.requires_grad_().grad = None
            outside.zero_grad()
            out = each(features)
            loss_of(out).backward()
            if each is model:
                outside.step()
            elif beside is not None:
                beside.step()
                beside.zero_grad()
            seen.append((out.detach(), None if weights is None else weights.grad.clone()))
        torch.testing.assert_close(seen[1], seen[0], rtol=1e-5, atol=1e-5)  # sums in another order
    return outside


def assert_same(model: nn.Module, fused: nn.Module, outside: torch.optim.Optimizer | None = None) -> None:
    """Equal tables, and equal states where an optimizer is given."""
    mine, theirs = dict(model.named_parameters()), dict(fused.named_parameters())
    assert list(mine) == list(theirs)
    kept = fused_optimizer(fused).state
    for name, weight in mine.items():
        # The step of a grid has a gradient that is a sum of rounding errors, which cancel.
        close = {"rtol": 1e-3, "atol": 1e-4} if name.endswith(".growth") else {}
        torch.testing.assert_close(
            theirs[name].data, weight.data, msg=lambda text, name=name: f"{name}: {text}", **close
        )
        if outside is not None and theirs[name] in kept:
            for key, state in kept[theirs[name]].items():
                expected = outside.state[weight]["step" if key == "row_counter" else key]
                expected = expected.expand_as(state) if expected.dim() == 0 else expected.view_as(state)
                # Gradients are sums in another order, and squares double their relative difference.
                torch.testing.assert_close(state, expected, rtol=1e-4, atol=2e-5)
