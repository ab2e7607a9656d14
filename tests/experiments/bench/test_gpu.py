"""The bench for a GPU, tried out on the CPU: what it counts, that its ways to train do the same, what it imports."""

import json
import subprocess
import sys

import pytest
import torch

import embcomp
from embcomp.methods import METHODS
from embcomp.methods.base import Table
from embcomp.nn.table import make_stores
from experiments.bench import gpu, timing
from experiments.errors import InputError

SMALL = {"device": "cpu", "features": 2, "batch": 50, "ids": 300, "dims": [8], "rounds": 2}
FEATURES, BATCH, IDS, DIM = 3, 40, 200, 16


def plan_of(method):
    return method.plan([Table(f"t{i}", IDS, DIM) for i in range(FEATURES)])


def ids() -> torch.Tensor:
    return torch.randint(IDS, (FEATURES, BATCH), generator=torch.Generator().manual_seed(0))


def test_it_needs_torch_alone():
    """In a process that has neither torchrec nor anything else of the extras; every method is measured."""
    blocked = ["torchrec", "fbgemm_gpu", "numpy", "polars", "typer", "rich", "scipy", "igraph", "pyarrow", "pydantic"]
    code = f"""
import runpy, sys, warnings
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] in {blocked!r} else self.finder.find_spec(name, *rest)
sys.meta_path[:] = map(Without, sys.meta_path)
warnings.simplefilter("ignore")
sys.argv = ["gpu", *{[f"{key}={json.dumps(value)}" for key, value in SMALL.items()]!r}]
runpy.run_module("experiments.bench.gpu", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert all(0 < row["low"] <= row["ratio"] <= row["high"] for row in rows)
    measured = {row["name"].partition(",")[0] for row in rows}
    assert measured == {name for name, method in METHODS.items() if method.__module__.startswith("embcomp.")}
    together = [row["name"] for row in rows if row["name"].endswith("encoding, together")]
    assert 20 <= len(together) < len(measured)
    assert len(rows) == 5 * len(measured) + len(together)  # no FBGEMM here, and no GPU
    assert {row["against"] for row in rows} == {
        "copy bandwidth", "the step", "the bytes of forward", "the bytes of the step"
    }  # fmt: skip


class Log:
    def log(self, text):
        pass


def test_fbgemm_is_added_where_it_is_installed():
    pytest.importorskip("fbgemm_gpu")
    names = [row.name for row in gpu.run(Log(), **SMALL, only="DoubleHash")]
    ways = {"DoubleHash, D=8, torch", "DoubleHash, D=8, FBGEMM"}
    assert {name.partition(": ")[0] for name in names} == {"DoubleHash, D=8", *ways}
    assert len(names) == 2 + 2 * 4
    assert len(gpu.run(Log(), **SMALL, only="QuotientRemainder")) == 2 + 4  # a product is none of bags


@pytest.mark.parametrize(
    "method",
    [
        embcomp.Full(),
        embcomp.DoubleHash(rows=30),
        embcomp.UnifiedEmbedding(rows=50, chunk_dim=4),
        embcomp.HashingTrick(rows=20),
    ],
    ids=lambda method: type(method).__name__,
)
def test_both_ways_do_the_same(method):
    """Vectors before, and after one step of SGD."""
    pytest.importorskip("fbgemm_gpu")
    plan, own = plan_of(method), ids()
    stores = make_stores(plan, True, None, None)
    modules = [embcomp.nn.CompressedEmbedding.from_plan(plan, table, stores, sparse=True) for table in plan.tables]
    grad = torch.randn(FEATURES, BATCH, DIM)
    (plain, plain_step), (batched, batched_step) = (
        gpu._torch_steps(modules, own, grad),
        gpu._fbgemm_steps(plan, stores, own, grad),
    )
    before = torch.cat(plain(), dim=1)
    torch.testing.assert_close(batched(), before)
    plain_step()
    batched_step()
    after = torch.cat(plain(), dim=1)
    assert (after != before).any(1).all()
    torch.testing.assert_close(batched(), after)


def test_bytes_are_counted_row_by_row():
    own = ids()
    per_id = 8 + DIM * 4
    for method, lookups, width in (
        (embcomp.HashingTrick(rows=30), 1, DIM),
        (embcomp.DoubleHash(rows=30), 2, DIM),
        (embcomp.UnifiedEmbedding(rows=90, chunk_dim=4), 4, 4),
    ):
        plan = plan_of(method)
        distinct, shared = set(), isinstance(method, embcomp.UnifiedEmbedding)
        for t, table in enumerate(plan.tables):
            for chunk in table.encoder(own[t]):
                distinct |= {(0 if shared else t, row) for row in chunk.rows.flatten().tolist()}
        forward, step = gpu._bytes(plan, own)
        assert forward == FEATURES * BATCH * (per_id + lookups * width * 4)
        assert gpu._bytes_between(plan, own) == FEATURES * BATCH * lookups * 16
        assert step == forward + FEATURES * BATCH * DIM * 4 + 2 * len(distinct) * width * 4


def test_a_gpu_is_timed_between_events(monkeypatch):
    class Event:
        now = 0.0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = Event.now

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)

    def call():
        Event.now += 3000.0  # milliseconds

    found = timing.seconds({"a": call}, rounds=2, device="cuda")
    assert found["a"].tolist() == [3.0, 3.0]


def test_bad_input():
    with pytest.raises(InputError, match="only=Hash: no such method"):
        gpu.run(Log(), **SMALL, only="Hash")
    with pytest.raises(InputError, match="device=tpu: no such device here"):
        gpu.run(Log(), **{**SMALL, "device": "tpu"})
