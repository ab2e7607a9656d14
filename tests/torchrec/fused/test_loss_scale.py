"""`fuse_` under a GradScaler: the tables train as without one, or the scaler is named."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import LAMB

import embcomp
from embcomp.torchrec import CompressedEmbeddingBagCollection, fuse_, fused_optimizer

LR = 0.125


def model(**settings) -> nn.Module:
    torch.manual_seed(0)
    tables = [EmbeddingBagConfig(name="item", num_embeddings=9, embedding_dim=4, feature_names=["item"])]
    collection = EmbeddingBagCollection(tables, is_weighted=True)
    sgd = {"optimizer": torch.optim.SGD, "optimizer_kwargs": {"lr": LR}}
    return fuse_(nn.ModuleDict({"c": collection}), **{**sgd, **settings})


def loss_of(fused: nn.Module, weights: Tensor) -> Tensor:
    batch = KeyedJaggedTensor(["item"], torch.tensor([1, 3, 3]), weights=weights, lengths=torch.tensor([2, 1]))
    return fused["c"](batch).values().square().sum()


def rows(fused: nn.Module) -> Tensor:
    return fused["c"].embedding_bags["item"].weight.clone()


def test_tables_and_weights_train_as_without_a_scaler(engine) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    plain, scaled = model(grad_scaler=False), model(grad_scaler=scaler)
    ours, theirs = (torch.tensor([0.5, 1.0, -1.5], requires_grad=True) for _ in range(2))
    sgd = torch.optim.SGD([ours], LR)
    for _ in range(2):
        before = rows(plain)
        loss_of(plain, theirs).backward()
        assert not torch.equal(rows(plain), before)
        scaler.scale(loss_of(scaled, ours)).backward()
        torch.testing.assert_close(rows(scaled), rows(plain))
        scaler.unscale_(sgd)
        torch.testing.assert_close(ours.grad, theirs.grad)
        scaler.step(sgd)
        scaler.update()
        fused_optimizer(scaled).step()
        sgd.zero_grad()
        with torch.no_grad():
            theirs -= LR * theirs.grad
            theirs.grad = None


def test_a_learned_step_has_the_gradient_of_the_scaled_loss() -> None:
    scaler, found = torch.amp.GradScaler("cpu", init_scale=1024.0), []
    batch = KeyedJaggedTensor(["item"], torch.tensor([1, 3, 3]), lengths=torch.tensor([2, 1]))
    for given in (False, scaler):
        torch.manual_seed(0)
        tables = [EmbeddingBagConfig(name="item", num_embeddings=9, embedding_dim=4, feature_names=["item"])]
        fused = nn.ModuleDict({"c": CompressedEmbeddingBagCollection(tables, {"*": embcomp.LowBit(bits=3)})})
        fuse_(fused, optimizer=torch.optim.SGD, optimizer_kwargs={"lr": LR}, grad_scaler=given)
        loss = fused["c"](batch).values().square().sum()
        (scaler.scale(loss) if given else loss).backward()
        found.append(next(p.grad for p in fused.parameters() if p.requires_grad))
    assert found[0].abs().min() > 0
    torch.testing.assert_close(found[1], 1024 * found[0])


def test_a_batch_that_overflows_changes_no_row(engine) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    fused, weights = model(grad_scaler=scaler), torch.ones(3)
    before = rows(fused)
    scaler.scale(8 * loss_of(fused, weights)).backward()
    assert torch.equal(rows(fused), before)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.Adagrad, {"lr": 0.1, "weight_decay": 0.1}),
        (torch.optim.Adam, {"lr": 0.1}),
        (torch.optim.AdamW, {"lr": 0.1, "lazy": False}),
        (LAMB, {"lr": 0.1}),
    ],
)
def test_a_batch_that_overflows_leaves_momentum_and_decay_out(kind, settings) -> None:
    """The batch before it has filled the moments, which would move rows by themselves."""
    scaler, weights = torch.amp.GradScaler("cpu", init_scale=2.0**16), torch.ones(3)
    plain = model(grad_scaler=False, optimizer=kind, optimizer_kwargs=settings)
    scaled = model(grad_scaler=scaler, optimizer=kind, optimizer_kwargs=settings)
    loss_of(plain, weights).backward()
    scaler.scale(loss_of(scaled, weights)).backward()
    scaler.update(2.0**127)
    scaler.scale(64 * loss_of(scaled, weights)).backward()  # overflows
    torch.testing.assert_close(rows(scaled), rows(plain))
    scaler.update(2.0**10)
    loss_of(plain, weights).backward()
    scaler.scale(loss_of(scaled, weights)).backward()
    torch.testing.assert_close(rows(scaled), rows(plain))


def test_a_scaler_that_was_not_named_is_an_error(engine) -> None:
    fused, silent, weights = model(), model(grad_scaler=False), torch.ones(3)
    loss_of(model(), weights).backward()  # nobody scales
    scaler = torch.amp.GradScaler("cpu")
    before = rows(fused)
    for each in (fused, copy.deepcopy(model(grad_scaler=scaler))):  # a copy has no scaler
        with pytest.raises(ValueError, match=r"scales a loss by 65536.*fuse_\(\.\.\., grad_scaler=scaler\)"):
            scaler.scale(loss_of(each, weights)).backward()
    assert torch.equal(rows(fused), before)
    loss_of(silent, weights).backward()  # another model of the process
    assert not torch.equal(rows(silent), before)
    with pytest.raises(ValueError, match=r"GradScaler\.step cannot unscale them: give the scaler to fuse_"):
        scaler.step(fused_optimizer(fused))
    with pytest.raises(ValueError, match=r"grad_scaler must be a torch\.amp\.GradScaler, False or None, got True"):
        model(grad_scaler=True)
