"""`HotTracker` over two processes: the same owners, rows and optimizer state as in one."""

import pytest

from embcomp import HotTracker
from experiments.processes.distributed import gathered_state
from experiments.studies import parity


def tracked(case: parity.Case, steps: int = 12) -> tuple[float, list[list[int]], int]:
    """Train in one process and over all; return the largest difference, all owners, and how many rows moved."""
    alone, outside, sharded, inside = parity.twins(case)
    settings = {"every": 3, "hysteresis": 1.1, "decay": 0.7}
    trackers = [
        HotTracker(alone.model.collection, table="films", optimizer=outside[0], **settings),
        HotTracker(sharded.module.model.collection, table="films", **settings),
    ]
    moved, owners = [0, 0], []
    for step in range(steps):
        parity._step(sharded, inside, parity.batch(step, parity.share()))
        parity._step(alone, outside, parity.batch(step, slice(parity.BATCH)))
        for number, tracker in enumerate(trackers):
            moved[number] += tracker.step()
        owners.append([tracker.owners().tolist() for tracker in trackers])
    assert moved[0] == moved[1]
    assert all(first == second for first, second in owners)
    found, expected = gathered_state(sharded.state_dict()), alone.state_dict()
    return parity.largest(found, expected, "model."), [first for first, _ in owners], moved[0]


@pytest.mark.parametrize("sharding", parity.SHARDINGS)
@pytest.mark.parametrize(("kind", "optimizer"), [("bags", "Adagrad"), ("sequences", "RowWiseAdagrad"), ("bags", "SGD")])
def test_rows_and_state_move_between_processes(pair, kind, sharding, optimizer):
    (difference, owners, moved), other = pair.run(tracked, parity.Case("HotRows", kind, sharding, optimizer))
    assert difference < parity.TOLERANCE
    assert moved > len(owners[-1]) > 0  # some rows were handed on
    assert (difference, owners, moved) == other
