"""The contract for every registered method; a new one joins by embcomp/testing/examples.py."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from embcomp.methods import Table
from embcomp.nn import CompressedEmbedding
from embcomp.testing.checks import CHECKS
from embcomp.testing.drop_ins import D, N, bag, embedding
from embcomp.testing.example import Example
from embcomp.testing.examples import EXAMPLES, KINDS, missing

ROOT = Path(__file__).parent.parent


def test_every_registered_method_is_in_the_matrix() -> None:
    assert not missing(), f"add an Example of {missing()} to embcomp/testing/examples.py"


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check, example: Example) -> None:
    check(example)


def rows_of_all() -> dict[str, list]:
    """The rows that every method reads for the same ids."""
    return {
        str(example): [chunk.rows.tolist() for chunk in embedding(example).encoder(torch.arange(N))]
        for example in EXAMPLES
    }


def test_rows_are_the_same_in_a_fresh_process_without_a_compiler(tmp_path: Path) -> None:
    code = "import json; from tests.test_matrix import rows_of_all; print(json.dumps(rows_of_all()))"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "7", "EMBCOMP_NATIVE": "0", "HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment, check=True
    )
    assert json.loads(result.stdout.splitlines()[-1]) == rows_of_all()


class All(nn.Module):
    """A bag of every kind, or of a part of them, modes and padding by turns: one graph holds what all do.

    Bags that are weighted, or pool with "sum", or combine before they pool, also hold what `CompressedEmbedding` does.
    """

    def __init__(self, turn: int = 0, part: slice = slice(None)) -> None:
        super().__init__()
        turns = [("sum", None), ("mean", 3), ("max", None), ("mean", None)]
        modes = [turns[(i + turn) % len(turns)] for i in range(len(KINDS))]
        self.bags = nn.ModuleList(
            bag(e, mode=mode, padding_idx=padding) for e, (mode, padding) in list(zip(KINDS, modes, strict=True))[part]
        )

    def forward(self, ids: Tensor, offsets: Tensor, weights: Tensor) -> list[Tensor]:
        return [m(ids, offsets, weights if m.mode == "sum" else None) for m in self.bags]


def batches() -> list[tuple]:
    sizes = ((5, [0, 2, 2]), (9, [0, 1, 1, 5, 9]), (3, [0, 3]))
    return [(torch.randint(N, (n,)), torch.tensor(offsets), torch.rand(n)) for n, offsets in sizes]


@pytest.mark.parametrize("start", range(0, len(KINDS), 3))
def test_compiled_whole_as_eager(start: int) -> None:
    """Forward and backward, one graph without breaks, batches of changing size.

    Three a graph: the time to compile one grows faster than the graph.
    """
    torch.compiler.reset()
    part = slice(start, start + 3)
    eager = All(part=part)
    compiled = torch.compile(All(part=part), fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in batches():
        expected, actual = eager(*batch), compiled(*batch)
        torch.testing.assert_close(actual, expected)
        for out in (expected, actual):
            sum(part.square().sum() for part in out).backward()
    for mine, theirs in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="needs a C++ compiler")
def test_inductor_hashes_alike() -> None:
    """The compiler that people use, on what it could get wrong: arithmetic on 64 bits with overflow.

    One small graph, because each kernel takes seconds to build.
    """
    (encoder,) = (embedding(example, n=None).encoder for example in EXAMPLES if example.name == "MultiHash-sum")
    compiled = torch.compile(lambda ids: encoder(ids)[0].rows, fullgraph=True, dynamic=True)
    with torch._inductor.config.patch({"cpp.vec_isa_ok": True}):  # no program to try each vector unit
        for n in (17, 4):
            ids = torch.randint(2**63 - 1, (n,))
            assert torch.equal(compiled(ids), encoder(ids)[0].rows)
    with pytest.raises(RuntimeError, match="embedding"):
        compiled(torch.tensor([1, -1]))


@pytest.mark.parametrize("start", range(0, len(KINDS), 6))
def test_exported_as_eager(start: int) -> None:
    module = All(turn=1, part=slice(start, start + 6))
    first, *others = batches()
    many, bags = torch.export.Dim("ids", min=2), torch.export.Dim("bags", min=2)
    exported = torch.export.export(module, first, dynamic_shapes=({0: many}, {0: bags}, {0: many}))
    again = exported.module()
    for batch in (first, *others):
        torch.testing.assert_close(again(*batch), module(*batch))
    with pytest.raises(RuntimeError, match="embedding"):
        again(torch.tensor([1, -4, 5]), *others[1][1:])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_on_a_gpu_as_on_cpu(example: Example) -> None:
    ids, offsets = torch.randint(N, (12,)), torch.tensor([0, 3, 3, 9])
    for mode in ("sum", "mean", "max"):
        module = bag(example, mode=mode, padding_idx=3)
        expected, table = module(ids, offsets), module.materialize()
        module.cuda()
        torch.testing.assert_close(module(ids.cuda(), offsets.cuda()).cpu(), expected)
        torch.testing.assert_close(module.materialize().cpu(), table)
    method = example.make([Table("embedding", N, D)])
    with torch.device("cuda"):
        assert CompressedEmbedding(N, D, method)(ids.cuda()).is_cuda
    assert CompressedEmbedding(N, D, method, device="cuda")(ids.cuda()).shape == (12, D)
