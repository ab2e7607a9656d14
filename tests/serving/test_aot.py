"""Exported programs as AOTInductor compiles them: a library of their own, for servers without Python."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import embcomp
from embcomp.ops import native


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users, self.films = nn.Embedding(300, 8), nn.Embedding(400, 8, padding_idx=0)
        self.out = nn.Linear(16, 1)

    def forward(self, users: Tensor, films: Tensor) -> Tensor:
        return self.out(torch.cat([self.users(users), self.films(films)], dim=1)).squeeze(1)


@pytest.mark.skipif("EMBCOMP_TEST_ALL" not in os.environ, reason="compiles for some twenty seconds: EMBCOMP_TEST_ALL=1")
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_program_compiled_ahead_of_time_answers_alike(tmp_path: Path) -> None:
    if native.library() is None:
        pytest.skip("no C++ compiler")
    model = Ranker().eval()
    embcomp.compress_(model, {"users": embcomp.DoubleHash(rows=50), "films": embcomp.LowBit(bits=4)})
    example = torch.arange(4), torch.arange(4)
    embcomp.export(model, tmp_path / "ranker.pt2", example)
    program = torch.export.load(tmp_path / "ranker.pt2")  # with the example inputs that AOTInductor asks for
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "compiled.pt2"))
    compiled, eager = torch._inductor.aoti_load_package(path), program.module()
    for size in (2, 7, 64):
        call = torch.randint(300, (size,)), torch.randint(400, (size,))
        torch.testing.assert_close(compiled(*call), eager(*call))
