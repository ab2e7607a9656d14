"""What the bench of sharded training counts and measures, at a small size."""

import torch
import torch.distributed as dist
from rich.console import Console

from experiments.bench import sharded
from experiments.bench.sharded import FULL, Size


def collectives() -> list[int]:
    """Bytes sent by calls whose bytes are known."""
    with sharded.counted() as sent:
        dist.all_to_all_single(torch.empty(4), torch.ones(4))  # 2 floats to the other
        splits = [1, 3] if dist.get_rank() == 0 else [2, 2]
        got = [1, 2] if dist.get_rank() == 0 else [3, 2]
        given = torch.ones(sum(splits), 2, dtype=torch.int64)
        dist.all_to_all_single(
            torch.empty(sum(got), 2, dtype=torch.int64), input=given, input_split_sizes=splits, output_split_sizes=got
        )
        dist.all_gather([torch.empty(3), torch.empty(3)], torch.ones(3))
    return sent


def test_bytes_are_those_sent_to_others(pair):
    assert pair.run(collectives) == [[8, 3 * 16, 12], [8, 2 * 16, 12]]


def test_all_candidates_are_measured(pair):
    first, second = pair.run(sharded.measure, Size(ids=200, batch=16, rounds=1))
    assert first.keys() == second.keys()
    for name, measured in first.items():
        assert measured.seconds.shape == (1,)
        assert (measured.sent > 0) == name.endswith("2 processes")
        assert measured.seconds[0] > 0


def test_rows_compare_with_full_tables_and_with_one_process(monkeypatch):
    names = [f"{name}, {many}" for name in sharded.methods(100) for many in ("2 processes", "1 process")]
    measured = {name: sharded.Measured(torch.tensor([2.0, 4.0]).numpy(), 7) for name in names}

    class Group:
        def __init__(self, number):
            assert number == 2

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            pass

        def run(self, function, size):
            return [measured, None]

    monkeypatch.setattr(sharded, "Processes", Group)
    rows = sharded.run(Console(quiet=True), batch=30)
    assert {row.against for row in rows if "10 %" in row.name} >= {f"{FULL}, 2 processes"}
    assert {(row.ratio, row.samples_per_second, row.sent_bytes_per_step) for row in rows} == {(1.0, 10.0, 7)}
    assert len(rows) == 3 + 4
