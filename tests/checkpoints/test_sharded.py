"""Two processes: every method under DistributedModelParallel, table-wise and row-wise; errors that all ranks hear of.

The processes do what tests/checkpoints/on_ranks.py says; each pair serves many checks.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrec.optim import RowWiseAdagrad

from embcomp.checkpoints import Checkpoints, Progress
from embcomp.torchrec import fuse_, fused_optimizer
from experiments.processes.processes import Processes
from tests.checkpoints import on_ranks
from tests.parts import PARTS

pytestmark = pytest.mark.timeout(900)  # several starts of two processes, on a machine that may be busy
every_method = pytest.mark.parametrize("example", PARTS, ids=str)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def pair() -> Iterator[Processes]:
    with Processes(2) as processes:
        yield processes


@pytest.fixture(scope="module")
def exchanged(folder: Path, pair: Processes) -> list[dict[str, Any]]:
    pair.run(on_ranks.exchange, folder)
    return [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def in_one(folder: Path, exchanged) -> list[dict[str, Any]]:
    with Processes(1) as one:
        one.run(on_ranks.load_both, folder)
    return torch.load(folder / "in-one.pt", weights_only=False)


@pytest.fixture(scope="module")
def unsharded(folder: Path, pair: Processes, exchanged) -> dict[str, Any]:
    """One process loads what two have saved, takes a step, saves, and both take the next one."""
    alone = on_ranks.Alone(folder / "table-wise", seed=6)
    alone.checkpoints.load()
    found = {"loaded": alone.state()}
    alone.checkpoints = Checkpoints(folder / "row-wise", alone.model, alone.optimizers)
    alone.checkpoints.load()
    found["loaded again"] = alone.state()
    alone.model.head[1].p = 0.0
    alone.step(2)
    found["stepped"] = alone.state()
    Checkpoints(folder / "one", alone.model, alone.optimizers).save(3)
    pair.run(on_ranks.go_on_from_one, folder)
    alone.step(3)
    found["stepped again"] = alone.state()
    found["by two"] = [torch.load(folder / f"from-one-{rank}.pt", weights_only=False) for rank in range(2)]
    return found


def whole(states: list[dict[str, Any]], example: object = None) -> dict[str, torch.Tensor]:
    """The shards of all ranks put together, of one method or of the dense part."""
    found = {}
    for name in dict.fromkeys(name for state in states for name in state):
        of_method = "collections." in name
        if name == "random" or of_method != (example is not None) or (of_method and f".{example}." not in name):
            continue
        parts = [state[name] for state in states if name in state]
        if isinstance(parts[0], torch.Tensor):
            assert all(torch.equal(part, parts[0]) for part in parts)
            found[name] = parts[0]
            continue
        shards = sorted((list(offset), shard) for part in parts for offset, shard in part)
        found[name] = torch.cat([shard for _, shard in shards])
    return found


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert one
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@every_method
def test_saved_by_two_loaded_under_another_sharding(exchanged, example):
    """Rows, maps and optimizer state, to the bit."""
    for saved, loaded in (("saved", "loaded"), ("saved again", "loaded again")):
        one, other = (whole([rank[name] for rank in exchanged], example) for name in (saved, loaded))
        assert_equal(one, other)
        kind = on_ranks.OPTIMIZERS[PARTS.index(example) % 3][0]  # optimizers take turns
        assert any("momentum1" in name for name in one) == (kind is not torch.optim.SGD)


@every_method
def test_saved_by_two_loaded_by_one(exchanged, in_one, example):
    for saved, loaded in zip(("saved", "saved again"), in_one, strict=True):
        assert_equal(whole([rank[saved] for rank in exchanged], example), whole([loaded], example))


@every_method
def test_saved_by_two_loaded_unsharded_and_back(exchanged, unsharded, example):
    """Rows and optimizer state to the bit, and the next step of one process is that of two, to rounding."""
    two = unsharded["by two"]
    for expected, found in [
        ([rank["saved"] for rank in exchanged], [unsharded["loaded"]]),
        ([rank["saved again"] for rank in exchanged], [unsharded["loaded again"]]),
        ([unsharded["stepped"]], [rank["loaded"] for rank in two]),
    ]:
        assert_equal(whole(expected, example), whole(found, example))
        assert_equal(*({k: v for k, v in whole(part).items() if k != "random"} for part in (expected, found)))
    for expected, found, before in [
        ("stepped", [rank["stepped"] for rank in exchanged], "loaded again"),
        ("stepped again", [rank["stepped"] for rank in two], "stepped"),
    ]:
        one, other = whole([unsharded[expected]], example), whole(found, example)
        torch.testing.assert_close(other, one, rtol=1e-5, atol=2e-6)
        start = whole([unsharded[before]], example)
        assert any(not torch.equal(value, start[name]) for name, value in one.items())


def test_dense_parts_and_random_states_come_back(exchanged, in_one):
    for saved, loaded in (("saved", "loaded"), ("saved again", "loaded again")):
        one, other = (whole([rank[name] for rank in exchanged]) for name in (saved, loaded))
        assert_equal(one, other)
        assert {"model.head.0.weight", "dense.0.exp_avg", "dense.0.step"} <= set(one)
        for rank in exchanged:
            assert torch.equal(rank[saved]["random"], rank[loaded]["random"])
    assert not torch.equal(exchanged[0]["saved"]["random"], exchanged[0]["saved again"]["random"])
    assert_equal(whole([rank["saved"] for rank in exchanged]), whole(in_one[:1]))


def test_training_goes_on_as_if_never_stopped(exchanged):
    """Under another sharding sums come in another order; test_kills.py and test_resume_page.py ask for every bit."""
    for rank in exchanged:
        assert rank["position"] == {"batch": 1}
        assert rank["loss again"] == pytest.approx(rank["loss"], rel=1e-5)


@pytest.mark.parametrize("kind", ["table-wise", "row-wise"])
def test_saved_by_two_loaded_into_a_plain_module(folder, exchanged, kind):
    """Without process group, sharding and optimizer, as for serving."""
    model = on_ranks.EveryMethod()
    Checkpoints(folder / kind, model).load(random=False)
    name = "saved" if kind == "table-wise" else "saved again"
    here = model.state_dict()
    for example in [None, *PARTS]:
        saved = whole([rank[name] for rank in exchanged], example)
        weights = {key: value for key, value in saved.items() if key.startswith("model.")}
        assert weights
        assert_equal(weights, {key: here[key.removeprefix("model.")] for key in weights})
    assert torch.isfinite(model(on_ranks.batch(on_ranks.RAGGED)))


@pytest.fixture(scope="module")
def bad(folder: Path, pair: Processes) -> list[dict[str, Any]]:
    return pair.run(on_ranks.bad_input, folder / "bad")


def test_a_full_disk_of_one_rank_is_heard_of_by_all(bad):
    for said in bad:
        for case in ("disk", "disk, in the background"):
            assert "OSError: [Errno 27] File too large: step 2 was not saved" in said[case]
            assert "the steps [1] are unchanged" in said[case]
        assert said["left"] == ["step-0000000001"]


def test_ranks_that_differ_are_refused(bad):
    for said in bad:
        assert said["position"] == (
            "ValueError: rank 1 is not like rank 0: position: rank 1 {'batch': 1}, rank 0 {'batch': 0}"
        )
        assert "is sharded, and the state of its optimizer would be lost" in said["not the whole"]
        assert said["version"] == "ValueError: rank 1 is not like rank 0: version: rank 1 '0.0.1', rank 0 '0.0.0'"


def test_a_rank_with_another_map_is_named(folder, pair, bad):
    for saving, loading in pair.run(on_ranks.other_map, folder / "bad"):
        assert "rank 1 is not like rank 0: table 'tags' has another map" in saving
        assert "(hot_ids: rank 1 'int32 [3]" in saving
        assert "checkpoint of another model: table 'tags' has another map or configuration (hot_ids: saved" in loading


def test_a_damaged_file_of_one_rank_sends_all_to_the_one_before(bad):
    for said in bad:
        position, (warned,) = said["damage"]
        assert position == {"batch": 1}
        assert "__1_0.distcp is damaged: its checksum does not fit; step 1 is loaded instead" in warned


@pytest.mark.parametrize("asynchronous", [False, True], ids=["at once", "in the background"])
def test_a_rank_that_dies_in_a_save_stops_the_others(tmp_path, asynchronous):
    with Processes(2) as processes:
        processes.start(on_ranks.die_in_a_save, tmp_path, asynchronous)
        first, second = processes.outcomes()
    assert second.error == "the process has died"
    assert first.value.startswith("RuntimeError: rank 0 of 2: another process is gone")
    model = on_ranks.EveryMethod(on_ranks.FEW)
    assert Checkpoints(tmp_path, model).load(random=False) == Progress(1, {})


def test_a_rank_that_hangs_stops_the_others(tmp_path, pair):
    said, _ = pair.run(on_ranks.hang_before_a_save, tmp_path)
    assert said.startswith("RuntimeError: rank 0 of 2: another process is gone or stuck")
    assert [path.name for path in tmp_path.iterdir()] == ["gave up"]


def test_fsdp2_and_ddp(tmp_path, pair):
    for losses in pair.run(on_ranks.replicas, tmp_path):
        for expected, loss in losses:
            assert loss == pytest.approx(expected, rel=1e-6)
    model = on_ranks.plain_model()
    Checkpoints(tmp_path, model).load()
    for rank in range(2):
        state = torch.load(tmp_path / f"state-{rank}.pt")
        assert state.keys() == {name for name, _ in model.named_parameters()}
        for name, value in state.items():
            assert torch.equal(model.get_parameter(name), value)


def test_fused_tables_of_one_process(tmp_path):
    """`fuse_`: rows, sums of squared gradients and learning rate, and the same weights unfused."""
    batches = [on_ranks.batch(on_ranks.RAGGED, seed=seed) for seed in range(4)]

    def trained(seed: int):
        torch.manual_seed(seed)
        model = on_ranks.EveryMethod(on_ranks.FEW)
        model.head[1].p = 0.0
        fuse_(model, optimizer=RowWiseAdagrad, optimizer_kwargs={"lr": 0.1})
        optimizers = [fused_optimizer(model), torch.optim.Adam(model.head.parameters(), lr=0.01)]
        return model, optimizers, Checkpoints(tmp_path, model, optimizers)

    def step(model, optimizers, features) -> float:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = model(features)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return loss.item()

    model, optimizers, checkpoints = trained(1)
    step(model, optimizers, batches[0])
    optimizers[0].param_groups[0]["lr"] = 0.05
    checkpoints.save(1)
    expected = [step(model, optimizers, features) for features in batches[1:]]
    other, optimizers, checkpoints = trained(2)
    checkpoints.load()
    assert [step(other, optimizers, features) for features in batches[1:]] == expected
    other = on_ranks.EveryMethod(on_ranks.FEW)
    fuse_(other, optimizer=torch.optim.Adagrad)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"the state {'momentum1': \[.*\]} in the checkpoint, {'momentum1': \[.*, 8\]}"
    ):
        Checkpoints(tmp_path, other, [fused_optimizer(other), torch.optim.Adam(other.head.parameters())]).load()
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    unfused = on_ranks.EveryMethod(on_ranks.FEW)
    Checkpoints(tmp_path, unfused).load(step=1)
    fused, optimizers, checkpoints = trained(3)
    checkpoints.load()
    assert unfused.eval()(batches[0]).item() == pytest.approx(fused.eval()(batches[0]).item())
