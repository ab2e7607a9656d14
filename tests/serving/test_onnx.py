"""Float programs of every method in ONNX, which the lists of requirements do not bring: skipped where it is absent."""

from pathlib import Path

import pytest
import torch
from torch import nn

import embcomp
from embcomp.testing.drop_ins import N, bag
from embcomp.testing.examples import EXAMPLES

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


CODED = ("LowBit", "ProductCodes", "FrequencyBits")  # whose tables are packed
FLOATS = [e for e in EXAMPLES if e.method.__name__ not in CODED]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("example", FLOATS, ids=lambda example: example.name)
def test_a_float_program_goes_to_onnx(example, tmp_path: Path) -> None:
    model = nn.Sequential(bag(example, mode="sum"))
    ids = torch.randint(N, (6, 3), generator=torch.Generator().manual_seed(0))
    embcomp.export(model, tmp_path / "model.pt2", (ids,), dtype="float32")
    program = torch.export.load(tmp_path / "model.pt2")
    torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch in (ids, ids[:4].flip(1)):
        (found,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), program.module()(batch), atol=1e-5, rtol=0)
