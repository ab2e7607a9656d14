"""Memory of outputs is used again only when nobody can see it."""

import threading

import pytest
import torch
from torch import Tensor
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import embcomp
from embcomp.ops import outputs
from embcomp.ops.outputs import Outputs
from embcomp.torchrec import CompressedEmbeddingBagCollection, fuse_


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "LARGE", 64)


HOLDERS = {
    "itself": lambda out: out,
    "view": lambda out: out[1:, 2],
    "detached": lambda out: out.detach(),
    "array": lambda out: out.numpy(),
    "storage": lambda out: out.untyped_storage(),
    "saved for the backward pass": lambda out: out * torch.ones(8, requires_grad=True),
}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_held_memory_is_not_given_again(holder) -> None:
    made = Outputs()
    out = made.empty(5, 8)
    place, kept = out.data_ptr(), holder(out)
    del out
    for _ in range(4):
        assert made.empty(5, 8).data_ptr() != place
    del kept


def test_free_memory_is_given_again_and_only_for_its_size() -> None:
    made = Outputs()
    out = made.empty(5, 8)
    place = out.data_ptr()
    del out
    again = made.empty(5, 8)
    assert again.data_ptr() == place
    assert again.shape == (5, 8)
    assert again.dtype == torch.float32
    del again
    wider = made.empty(6, 8)
    assert wider.shape == (6, 8)
    assert wider.untyped_storage().nbytes() == 6 * 8 * 4


def test_memory_of_other_processes_is_left_to_them() -> None:
    made = Outputs()
    out = made.empty(5, 8).share_memory_()
    place = out.data_ptr()
    del out
    assert made.empty(5, 8).data_ptr() != place


def test_threads_never_share_memory() -> None:
    made, wrong = Outputs(), []

    def work(number: int) -> None:
        for _ in range(300):
            out = made.empty(5, 8).fill_(number)
            if not bool((out == number).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_results_of_earlier_steps_stay() -> None:
    tables = [EmbeddingBagConfig(name="t", num_embeddings=50, embedding_dim=8, feature_names=["f"])]
    collection = CompressedEmbeddingBagCollection(tables, {"*": embcomp.HashingTrick(rows=20)})
    fuse_(collection, optimizer=torch.optim.SGD, optimizer_kwargs={"lr": 0.1})
    results: list[tuple[Tensor, Tensor]] = []
    for step in range(5):
        ids = torch.arange(step, step + 6)
        out = collection(KeyedJaggedTensor(["f"], ids, lengths=torch.ones(6, dtype=torch.int64))).values()
        results.append((out, out.detach().clone()))
        out.square().sum().backward()
    for out, before in results:
        assert torch.equal(out, before)
