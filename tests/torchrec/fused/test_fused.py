"""`fuse_`: the optimizer inside the backward pass leaves what the same optimizer outside it leaves."""

import copy
import pickle

import pytest
import torch
from hypothesis import example as explicit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchrec.modules.embedding_configs import DataType, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

import embcomp
from embcomp.testing.examples import EXAMPLES, KINDS
from embcomp.torchrec import (
    CompressedEmbeddingCollection,
    fuse_,
    fused_optimizer,
)
from embcomp.torchrec.fused.engines import FbgemmEngine, NativeEngine
from tests.parts import PARTS
from tests.torchrec.batches import RAGGED, as_tables, bag_tables, batch, batch_lengths, sequence_tables
from tests.torchrec.training import (
    ON_GPUS_ALONE,
    OPTIMIZERS,
    Model,
    assert_same,
    bag_model,
    every_optimizer,
    fused_twin,
    loss_of,
    train_both,
)

every_method = pytest.mark.parametrize("example", PARTS, ids=str)
# How rows come about does not matter to how they are updated: each method meets one optimizer, some meet all.
WITH_ALL = ("Full", "HashEmbedding", "SoftGraphHash", "LowBit-unified")
every_pair = pytest.mark.parametrize(
    ("example", "optimizer"),
    [
        pytest.param(example, optimizer, id=f"{example}-{optimizer}")
        for i, example in enumerate(PARTS)
        for j, optimizer in enumerate(OPTIMIZERS)
        if example.name in WITH_ALL or j == i % len(OPTIMIZERS)
    ],
)


# --- Equal to the optimizer outside ---


@every_pair
def test_bags_train_as_unfused(example, optimizer, engine):
    model = bag_model({"*": example.make(as_tables(bag_tables()))})
    fused = fused_twin(model, optimizer)
    batches = [batch(RAGGED, seed=seed) for seed in range(3)]
    assert_same(model, fused, train_both(model, fused, optimizer, batches))


@every_pair
def test_weighted_bags_train_as_unfused(example, optimizer, engine):
    """Also the gradient of the weights, which reaches whoever computed them."""
    model = bag_model({"*": example.make(as_tables(bag_tables()))}, weighted=True)
    fused = fused_twin(model, optimizer)
    batches = [batch(RAGGED, seed=seed, weighted=True) for seed in range(2)]
    assert_same(model, fused, train_both(model, fused, optimizer, batches))


@every_pair
def test_sequences_train_as_unfused(example, optimizer, engine):
    method = example.make(as_tables(sequence_tables()))
    model = Model(CompressedEmbeddingCollection(sequence_tables(), {"*": method}))
    fused = fused_twin(model, optimizer)
    batches = [batch(RAGGED, seed=seed) for seed in range(2)]
    assert_same(model, fused, train_both(model, fused, optimizer, batches))


@every_optimizer
@settings(max_examples=15)
@given(
    example=st.sampled_from(EXAMPLES),
    all_lengths=st.lists(batch_lengths(), min_size=1, max_size=3),
    weighted=st.booleans(),
    kind=st.sampled_from([NativeEngine, FbgemmEngine]),
)
@explicit(example=EXAMPLES[0], all_lengths=[[[0], [0], [0], [0]]], weighted=False, kind=NativeEngine)
@explicit(example=EXAMPLES[0], all_lengths=[[[0], [0], [0], [0]]], weighted=False, kind=FbgemmEngine)
def test_any_shape_trains_as_unfused(optimizer, example, all_lengths, weighted, kind):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embcomp.torchrec.fused.tables.make_engine", NativeEngine if optimizer in ON_GPUS_ALONE else kind)
        model = bag_model({"*": example.make(as_tables(bag_tables()))}, weighted=weighted)
        fused = fused_twin(model, optimizer)
        batches = [batch(lengths, seed=i, weighted=weighted) for i, lengths in enumerate(all_lengths)]
        assert_same(model, fused, train_both(model, fused, optimizer, batches))


@every_optimizer
def test_torchrecs_own_collections_train_as_unfused(optimizer, engine):
    """With their keys, means, indices, and ids in an order and a width of the caller's choice."""
    model = Model(EmbeddingBagCollection(bag_tables()))
    fused = fused_twin(model, optimizer)
    order = ["tag", "user", "other", "film", "friend"]
    batches = [batch([[1, 2], [0, 3], [1, 1], [4, 0], [2, 2]], order, seed=s, ids=torch.int32) for s in range(2)]
    assert_same(model, fused, train_both(model, fused, optimizer, batches))
    assert fused.collection(batches[0]).keys() == model.collection(batches[0]).keys()

    model = Model(EmbeddingCollection(sequence_tables(), need_indices=True))
    fused = fused_twin(model, optimizer)
    assert_same(model, fused, train_both(model, fused, optimizer, batches))
    mine, theirs = model.collection(batches[0]), fused.collection(batches[0])
    assert list(mine) == list(theirs)
    for key, jagged in mine.items():
        assert torch.equal(jagged.weights(), theirs[key].weights())
        assert torch.equal(jagged.lengths(), theirs[key].lengths())


def test_weighted_torchrec_bags_train_as_unfused(engine):
    model = Model(EmbeddingBagCollection(bag_tables(pooling=PoolingType.SUM), is_weighted=True))
    fused = fused_twin(model, "RowWiseAdagrad")
    batches = [batch(RAGGED, seed=seed, weighted=True) for seed in range(2)]
    assert_same(model, fused, train_both(model, fused, "RowWiseAdagrad", batches))


def test_half_precision_tables_keep_their_type():
    model = bag_model({"*": embcomp.HashingTrick(rows=7)}, data_type=DataType.FP16)
    fused = fused_twin(model, "SGD")
    assert {weight.dtype for weight in fused.parameters()} == {torch.float16}
    assert embcomp.nbytes(fused) == embcomp.nbytes(model)
    features = batch(RAGGED)
    before = [weight.detach().float() for weight in model.parameters()]
    torch.testing.assert_close(fused(features), model(features), rtol=1e-3, atol=1e-4)
    for each in (model, fused):
        loss_of(each(features)).backward()
    for old, weight, new in zip(before, model.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(new.float(), old - 0.1 * weight.grad.float(), rtol=1e-2, atol=5e-3)


# --- When updates happen ---


@pytest.fixture
def pair(engine) -> tuple[nn.Module, nn.Module]:
    model = bag_model({"*": embcomp.DoubleHash(rows=7)})
    return model, fused_twin(model, "SGD")


def test_two_forwards_before_one_backward(pair):
    model, fused = pair
    for each in pair:
        sum(each(batch(RAGGED, seed=seed)).sum() for seed in range(2)).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert_same(model, fused)


def test_two_backwards_are_two_updates(pair):
    model, fused = pair
    for each in pair:
        loss = each(batch(RAGGED)).sum()
        loss.backward(retain_graph=True)
        loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()  # of the accumulated gradient
    assert_same(model, fused)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_changes_nothing(pair, mode):
    model, fused = pair
    with mode():
        out = fused.eval()(batch(RAGGED))
    assert not out.requires_grad
    torch.testing.assert_close(out, model(batch(RAGGED)).detach())
    assert_same(model, fused)
    loss_of(fused.train()(batch(RAGGED))).backward()  # and training goes on
    assert not torch.equal(next(fused.parameters()), next(model.parameters()))


def test_no_gradient_is_kept_and_no_other_optimizer_moves_the_rows(pair):
    _, fused = pair
    loss_of(fused(batch(RAGGED))).backward()
    before = [weight.clone() for weight in fused.parameters()]
    assert all(weight.grad is None and not weight.requires_grad for weight in fused.parameters())
    torch.optim.SGD(fused.parameters(), lr=1.0, weight_decay=1.0).step()
    assert all(torch.equal(a, b) for a, b in zip(before, fused.parameters(), strict=True))


@pytest.mark.parametrize("wrong", [-1, 12, 2**40])
@every_optimizer
def test_a_row_out_of_range_changes_nothing_and_names_the_table(engine, wrong, optimizer):
    for collection in (EmbeddingBagCollection(bag_tables()), EmbeddingCollection(sequence_tables())):
        model = Model(collection)
        fused = fused_twin(model, optimizer)
        features = batch([[1, 2], [1, 1], [2, 0], [0, 3]])
        features.values()[-2] = wrong  # of "tag"
        ids = features.values().clone()
        with pytest.raises(IndexError, match=rf"'tags'.*{wrong}"):
            loss_of(fused(features)).backward()
        assert torch.equal(features.values(), ids)
        assert_same(model, fused)
        kept = [state for states in fused_optimizer(fused).state.values() for state in states.values()]
        assert all(state.count_nonzero() == 0 for state in kept)


def test_missing_feature_and_missing_weights(engine):
    fused = fused_twin(Model(EmbeddingBagCollection(bag_tables())), "SGD")
    with pytest.raises(KeyError, match="friend"):
        fused(batch(RAGGED[1:], keys=["user", "film", "tag"]))
    fused = fused_twin(Model(EmbeddingBagCollection(bag_tables(pooling=PoolingType.SUM), is_weighted=True)), "SGD")
    with pytest.raises(ValueError, match="no weights"):
        fused(batch(RAGGED))


# --- State, copies, moves ---


@pytest.mark.parametrize("example", KINDS, ids=str)
def test_state_dicts_fit_either_form(example, engine):
    method = example.make(as_tables(bag_tables()))
    model = bag_model({"*": method})
    fused = fused_twin(bag_model({"*": method}), "Adagrad")
    assert list(fused.state_dict()) == list(model.state_dict())
    assert embcomp.nbytes(fused) == embcomp.nbytes(model)
    for assign in (False, True):
        fused.load_state_dict(model.state_dict(), assign=assign)
        torch.testing.assert_close(fused(batch(RAGGED)), model(batch(RAGGED)))
        mine, theirs = (
            {weight.data_ptr() for name, weight in each.named_parameters() if ".embedding" in name}
            for each in (model, fused)
        )
        assert theirs
        assert not mine & theirs  # what a combiner or a codec learns is assigned as torch assigns it
        loss_of(fused(batch(RAGGED))).backward()
        model.load_state_dict(fused.state_dict())
        torch.testing.assert_close(fused(batch(RAGGED)), model(batch(RAGGED)))


@every_optimizer
@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_train_on_alike_and_apart(twin_of, optimizer, engine):
    fused = fused_twin(bag_model({"*": embcomp.HashEmbedding(rows=5)}), optimizer)
    loss_of(fused(batch(RAGGED))).backward()
    handle = fused_optimizer(fused)
    handle.param_groups[0]["lr"] = 0.07
    handle.step()
    twin = twin_of(fused)
    assert fused_optimizer(twin).param_groups[0]["lr"] == 0.07
    before = copy.deepcopy(fused.state_dict())
    loss_of(twin(batch(RAGGED, seed=1))).backward()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), fused.state_dict().values(), strict=True))
    loss_of(fused(batch(RAGGED, seed=1))).backward()
    assert all(torch.equal(a, b) for a, b in zip(twin.state_dict().values(), fused.state_dict().values(), strict=True))
    for mine, theirs in zip(fused_optimizer(fused).state.values(), fused_optimizer(twin).state.values(), strict=True):
        assert list(mine) == list(theirs)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("move", [nn.Module.half, lambda m: m.to("meta"), lambda m: m.to_empty(device="cpu")])
def test_moves_are_refused_and_change_nothing(pair, move):
    model, fused = pair
    with pytest.raises(RuntimeError, match="move the model first"):
        move(fused.collection.branches["bags"].collection)
    assert_same(model, fused)
    assert_same(model, fused, train_both(model, fused, "SGD", [batch(RAGGED)]))


def test_moves_that_are_none_pass(pair):
    model, fused = pair
    fused.to("cpu").float().train()
    assert_same(model, fused, train_both(model, fused, "SGD", [batch(RAGGED)]))


@pytest.mark.parametrize("name", ["clip_grad_value", "clip_grad_norm"])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_gradients_are_clipped_table_by_table(name, optimizer):
    model = Model(EmbeddingBagCollection(bag_tables()))
    kind, kwargs = OPTIMIZERS[optimizer]
    fused = fuse_(copy.deepcopy(model), optimizer=kind, optimizer_kwargs={**kwargs, "lazy": False}, **{name: 0.3})
    outside = kind(model.parameters(), **kwargs)
    for seed in range(3):
        for each in (model, fused):
            outside.zero_grad()
            loss_of(each(batch(RAGGED, seed=seed))).backward()
            if each is model:
                for weight in model.parameters():
                    getattr(torch.nn.utils, f"{name}_")([weight], 0.3)
                outside.step()
    assert_same(model, fused, outside)


@pytest.mark.parametrize("optimizer", ["momentum", "Adam", "AdamW"])
def test_lazy_rows_move_as_under_torch_where_every_step_reads_them(optimizer):
    model = bag_model({"*": embcomp.HashingTrick(rows=1)})
    fused = fused_twin(model, optimizer, lazy=True)
    batches = [batch([[1, 1]] * 4, seed=seed) for seed in range(4)]
    assert_same(model, fused, train_both(model, fused, optimizer, batches))


@pytest.mark.parametrize("optimizer", ["momentum", "Adam", "AdamW"])
def test_lazy_rows_stay_where_no_step_reads_them(optimizer):
    fused = fused_twin(Model(EmbeddingBagCollection(bag_tables())), optimizer, lazy=True)
    loss_of(fused(batch(RAGGED))).backward()
    before = fused.collection.embedding_bags["films"].weight.clone()
    features = batch(RAGGED, seed=1)
    loss_of(fused(features)).backward()
    read = torch.cat([features["film"].values(), features["user"].values()])  # what reads "films"
    moved = (fused.collection.embedding_bags["films"].weight != before).any(1)
    assert torch.equal(moved.nonzero().squeeze(1), read.unique())
