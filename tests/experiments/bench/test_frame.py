"""The bench of all methods: that it has all of them at a tenth of the bytes, and that its plain forms are the same."""

import pytest
import torch

import embcomp
from embcomp.methods import METHODS
from embcomp.methods.base import Table
from experiments.bench import frame
from experiments.bench.plain_tables import Distinct, PlainDeepHash, PlainTensorTrain

IDS, DIM, BATCH = 20_000, 64, 256
TABLE = Table("embedding", IDS, DIM)


def ids() -> torch.Tensor:
    return torch.randint(IDS, (BATCH,), generator=torch.Generator().manual_seed(0))


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)


def test_it_has_every_method_at_a_tenth_of_the_bytes():
    made = frame.methods(TABLE)
    ours = {name for name, method in METHODS.items() if method.__module__.startswith("embcomp.")}
    assert ours <= {name.partition("(")[0] for name in made}
    for name, make in made.items():
        module = frame.module_of(make(), TABLE, BATCH)
        share = embcomp.served_nbytes(module) / (4 * IDS * DIM)
        # A tenth of the rows, and maps, of those that no budget sizes.
        assert share == 1 if name == "Full" else 0.05 < share <= (0.2 if name in ("SemanticIds",) else 0.13), name


def test_rows_are_ratios_to_the_full_table():
    log = Log()
    rows = frame.run(log, ids=500, batch=64, rounds=2, only="TensorTrain")
    assert [(row.name, row.against) for row in rows] == [
        ("TensorTrain: look-up", "Full"),
        ("TensorTrain: training step", "Full"),
        ("TensorTrain: look-up", "plain torch"),
        ("TensorTrain: training step", "plain torch"),
    ]
    assert all(0 < row.low <= row.ratio <= row.high for row in rows)
    assert log.lines[0].startswith("TensorTrain: ")


@pytest.mark.parametrize("distinct", [False, True])
def test_the_plain_tensor_train_is_the_same(distinct):
    table = frame.module_of(embcomp.TensorTrain(rank=5), TABLE, BATCH)
    plain = PlainTensorTrain(table)
    torch.testing.assert_close((Distinct(plain) if distinct else plain)(ids()), table(ids()))
    table(ids()).square().sum().backward()
    plain(ids()).square().sum().backward()
    for core, read in zip(plain.cores, table.reads, strict=True):
        torch.testing.assert_close(core.grad, table.stores[read].weight.grad.to_dense())


def test_the_plain_network_is_the_same_behind_other_hashes():
    table = frame.module_of(embcomp.DeepHash(width=8, hashes=64, layers=3), TABLE, BATCH)
    plain = PlainDeepHash(table)
    codes = plain.codes(ids())
    assert codes.shape == (BATCH, 64)
    assert -1 <= codes.min() < -0.9
    assert 0.9 < codes.max() <= 1
    assert codes.mean().abs() < 0.05
    bias = table.stores[0].weight.expand(BATCH, -1)
    torch.testing.assert_close(plain(ids()), table.combiner([bias, codes]))


def test_a_step_of_hot_rows_moves_them():
    module = frame.module_of(embcomp.HotRows(rows=50), TABLE, BATCH)
    step = frame._calls(module, ids())[frame.STEP]
    for _ in range(101):
        step()
    assert int(module.encoder.number) > 0
