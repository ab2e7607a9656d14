"""A training step can be captured into a CUDA graph: after the first step nothing is read back or sent from the host.

Without a GPU, the meta device stands for it (`tests/test_devices.py`): it has no values to read back, and refuses
tensors of the CPU. What it would let pass, tensors made from numbers of the host, is refused by a mode.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embcomp
from embcomp.testing.examples import EXAMPLES
from embcomp.torchrec import CompressedEmbeddingBagCollection, CompressedEmbeddingCollection
from embcomp.torchrec.checks import check_features
from embcomp.torchrec.fused.sequences import look_up_each
from tests.torchrec.batches import FEATURES, RAGGED, as_tables, bag_tables, batch, sequence_tables

every_method = pytest.mark.parametrize("example", EXAMPLES, ids=str)
every_kind = pytest.mark.parametrize("kind", [CompressedEmbeddingBagCollection, CompressedEmbeddingCollection])
FROM_THE_HOST = (torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.new_tensor)
READ_BACK = {
    torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select, torch.ops.aten._unique2,
    torch.ops.aten.unique_dim, torch.ops.aten.unique_consecutive, torch.ops.aten.equal, torch.ops.aten.is_nonzero,
}  # fmt: skip


class Away(TorchFunctionMode):
    """Refuses tensors that are made from numbers of the host, or are on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FROM_THE_HOST:
            raise AssertionError(f"{func.__name__} sends {args[:1]} from the host")
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not made.is_meta:
            raise AssertionError(f"{func} makes a tensor on the CPU")
        return made


class Unread(TorchDispatchMode):
    """Refuses operations whose result the host has to wait for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = func.overloadpacket is torch.ops.aten.index and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if func.overloadpacket in READ_BACK or masks:
            raise AssertionError(f"{func} waits for a value")
        return func(*args, **(kwargs or {}))


def on_meta(kind: type, methods: dict[str, Any]) -> Any:
    """A collection with everything on the meta device; its encoders would else keep their maps."""
    tables = bag_tables() if kind is CompressedEmbeddingBagCollection else sequence_tables()
    methods = {name: make(as_tables(tables)) if callable(make) else make for name, make in methods.items()}
    collection = kind(tables, methods).to("meta")
    for module in collection.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to("meta")
    return collection


def padded(sizes: Sequence[int] = (2, 2, 2, 2)) -> KeyedJaggedTensor:
    """A batch of fixed sizes, whose lengths the host does not know."""
    empty = {"dtype": torch.int64, "device": "meta"}
    known = {"length_per_key": list(sizes), "offset_per_key": [sum(sizes[:i]) for i in range(5)]}
    lengths, offsets = torch.empty(8, **empty), torch.empty(9, **empty)
    return KeyedJaggedTensor(FEATURES, torch.empty(8, **empty), lengths=lengths, offsets=offsets, stride=2, **known)


def step(collection: Any, optimizer: torch.optim.Optimizer, features: KeyedJaggedTensor) -> None:
    out = collection(features)
    values = [part.values() for part in out.values()] if isinstance(out, dict) else [out.values()]
    sum(each.square().sum() for each in values).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def together(monkeypatch):
    """Encodes as on a GPU: features of one kind together."""
    monkeypatch.setattr("embcomp.torchrec.collection.encoder._pays_together", lambda values: True)


@every_kind
@every_method
def test_a_training_step_sends_nothing_and_reads_nothing_back(example, kind, together) -> None:
    collection = on_meta(kind, {"*": example.make})
    optimizer = torch.optim.SGD(collection.parameters(), lr=0.1)
    step(collection, optimizer, padded())  # what is made once is made here
    features = padded()
    with Away():
        step(collection, optimizer, features)


def test_the_first_step_makes_what_later_ones_need(together) -> None:
    """So that the mode sees what it is to see."""
    collection = on_meta(CompressedEmbeddingBagCollection, {"*": embcomp.UnifiedEmbedding(rows=20, chunk_dim=4)})
    features = padded()
    with pytest.raises(AssertionError, match="tensor sends"), Away():
        collection(features)


@every_kind
@every_method
def test_encoding_waits_for_no_value(example, kind, together) -> None:
    """With values, on the path of a GPU: under a dispatch mode no compiled function serves."""
    tables = bag_tables() if kind is CompressedEmbeddingBagCollection else sequence_tables()
    collection = kind(tables, {"*": example.make(as_tables(tables))})
    features = batch(RAGGED)
    features.length_per_key(), features.offset_per_key(), features.offsets()  # as a loader gives them
    for branch in collection.branches.values():
        expected = branch.encoder(features)
        with Unread():
            rows = branch.encoder(features)
        assert torch.equal(rows.values(), expected.values())


@pytest.mark.parametrize("sizes", [[2, 2, 2, 2], [1, 3, 2, 2]])
def test_sequences_of_fused_tables_send_nothing_and_read_nothing_back(sizes) -> None:
    """FBGEMM's engine itself is not here: it is given the rows and offsets, and has columns for each feature."""
    given: list[torch.Tensor] = []

    def look_up(rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        given.extend((rows, offsets))
        return torch.empty(max(sizes), 12, device="meta")

    features = padded(sizes)
    with Away():
        found = look_up_each(features, FEATURES, [3, 3, 3, 3], look_up)
    assert [list(found[key].values().shape) for key in FEATURES] == [[size, 3] for size in sizes]
    assert [each.shape[0] for each in given] == [8, 4 * max(sizes) + 1]


def test_batches_are_checked_without_waiting() -> None:
    features = batch(RAGGED)
    features.length_per_key()
    with Unread():
        check_features(features, FEATURES, weighted=False)
    wrong = KeyedJaggedTensor(
        ["user"], torch.tensor([1, 2]), lengths=torch.tensor([1, 2]), stride=2, length_per_key=[2]
    )
    with pytest.raises(RuntimeError, match="lengths do not add up"), Unread():
        check_features(wrong, ["user"], weighted=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the tests above stand for it")
@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_a_graph_of_a_step_trains_as_steps_do(example) -> None:
    tables = bag_tables()
    method, size = {"*": example.make(as_tables(tables))}, 12
    models = [CompressedEmbeddingBagCollection(tables, method, device="cuda") for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    known = {"length_per_key": [size] * 4, "offset_per_key": [size * i for i in range(5)], "stride": size}
    lengths = torch.ones(4 * size, dtype=torch.int64, device="cuda")
    ids = torch.zeros(4 * size, dtype=torch.int64, device="cuda")
    features = KeyedJaggedTensor(FEATURES, ids, lengths=lengths, **known)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for model, optimizer in zip(models, optimizers, strict=True):
            step(model, optimizer, features)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(models[0], optimizers[0], features)
    graph.replay()  # capturing is no step
    step(models[1], optimizers[1], features)
    for seed in range(3):
        ids.copy_(torch.randint(0, 12, (4 * size,), generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        step(models[1], optimizers[1], features)
    for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
