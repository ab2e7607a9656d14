"""Training over two processes is training in one: every part, sharding and optimizer, plain and in a pipeline.

The whole grid of every method, with more steps, is `python -m experiments parity`.
"""

import json
import warnings
from dataclasses import asdict, astuple

import pytest
import torch
import torch.distributed as dist
from torchrec.distributed.train_pipeline import PrefetchTrainPipelineSparseDist, TrainPipelineSparseDist

from experiments.runs.results import RESULTS
from experiments.studies import parity, study
from tests.parts import PARTS

OPTIMIZERS = list(parity.OPTIMIZERS)
# All parts in both shardings; optimizers and kinds take turns.
CASES = [
    parity.Case(str(example), parity.KINDS[(i + j) % 2], sharding, OPTIMIZERS[(i + 2 * j) % len(OPTIMIZERS)])
    for i, example in enumerate(PARTS)
    for j, sharding in enumerate(parity.SHARDINGS)
]


def test_the_committed_grid_is_complete():
    """The file of `python -m experiments parity` has every method, and each within the tolerance."""
    file = RESULTS / "sharded-parity" / "2-processes.json"
    rows = json.loads(file.read_text())
    names = ("method", "kind", "sharding", "optimizer")
    assert {tuple(row[name] for name in names) for row in rows} == {astuple(case) for case in parity.cases()}
    assert {(row["processes"], row["steps"]) for row in rows} == {(2, 20)}
    assert study.current_rows(file, [{**asdict(case), "processes": 2, "steps": 20} for case in parity.cases()]) == rows
    assert max(row[name] for row in rows for name in ("loss", "tables", "dense")) < parity.TOLERANCE
    assert min(row["moved"] for row in rows) > 1e-3


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}-{case.kind}-{case.sharding}-{case.optimizer}")
def test_two_processes_train_as_one(pair, case):
    row, other = pair.run(parity.compare, case, 4)
    assert row.worst < parity.TOLERANCE
    assert row.moved > 1e-3
    assert row == other


@pytest.mark.parametrize("example", PARTS, ids=str)
def test_pipelines_run_every_encoder_ahead(pair, example):
    i = PARTS.index(example)
    case = parity.Case(str(example), parity.KINDS[i % 2], parity.SHARDINGS[i // 2 % 2], OPTIMIZERS[i % len(OPTIMIZERS)])
    for branches, pipelined, difference in pair.run(pipelined_training, case):
        expected = {f"model.collection.branches.{name}.collection" for name in branches}
        assert pipelined == [expected, expected]
        assert difference < 1e-6


class PrefetchWithoutStreams(PrefetchTrainPipelineSparseDist):
    """torchrec prefetches on the streams of a GPU and does nothing on CPU; this is what it does, without streams."""

    def _prefetch(self, context):
        for module in self._pipelined_modules:
            name = module.forward.name
            data = context.input_dist_tensors_requests.pop(name).wait()
            module.prefetch(ctx=context.module_contexts[name], dist_input=data)
            context.module_input_post_prefetch[name] = data
            context.module_contexts_post_prefetch[name] = context.module_contexts.pop(name)


def pipelined_training(case: parity.Case, steps: int = 3):
    """Some steps in each pipeline, one after the other, which are those of one process without any.

    Branches of the model, what the pipelines have run ahead, the largest difference from the one process.
    """
    alone, outside, sharded, (dense, _) = parity.twins(case)
    pipelined, seen = [], []
    for number, kind in enumerate((TrainPipelineSparseDist, PrefetchWithoutStreams)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline = kind(sharded, dense, torch.device("cpu"), pipeline_postproc=True)
            feed = (parity.batch(steps * number + step, parity.share()) for step in range(steps))
            seen += [pipeline.progress(feed) for _ in range(steps)]
        pipelined.append({module.forward.name for module in pipeline._pipelined_modules})
        pipeline.detach()
    for step, logits in enumerate(seen):
        for optimizer in outside:
            optimizer.zero_grad()
        loss, expected = alone(parity.batch(step, slice(parity.BATCH)))
        loss.backward()
        for optimizer in outside:
            optimizer.step()
        seen[step] = (logits - expected[parity.share()]).abs().max().item()
    assert dist.get_world_size() == 2
    return list(alone.model.collection.branches), pipelined, max(seen)
