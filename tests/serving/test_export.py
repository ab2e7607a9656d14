"""Files that are served: every method, any number of ids, torch alone."""

import hashlib
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import embcomp
from embcomp import serving
from embcomp.files import Damaged
from embcomp.serving.swap import swap
from embcomp.testing.drop_ins import N, bag
from embcomp.testing.examples import EXAMPLES

# One example of each class, and those that take other paths.
FEW = [
    e
    for e in EXAMPLES
    if "-" not in e.name or e.name in ("MultiHash-sum", "QuotientRemainder-mul", "SemanticIds-hybrid")
]


class All(nn.Module):
    """A bag of every class of methods, modes by turns: one program holds what all of them do."""

    def __init__(self) -> None:
        super().__init__()
        modes = ("sum", "mean", "max")
        self.bags = nn.ModuleDict({e.name: bag(e, mode=modes[i % 3]) for i, e in enumerate(FEW)})

    def forward(self, ids: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        return {name: module(ids, offsets) for name, module in self.bags.items()}


SERVE = """
import sys
for name in ("embcomp", "torchrec", "fbgemm_gpu"):
    sys.modules[name] = None  # an import of it fails
import torch
program = torch.export.load("model.pt2").module()
calls = torch.load("calls.pt")
torch.save([program(*call) for call in calls], "answers.pt")
try:
    program(torch.tensor([1, -4]), torch.tensor([0]))
except RuntimeError as error:
    print(error)
"""


def test_every_method_is_served_by_torch_alone(tmp_path: Path) -> None:
    model = All()
    coded = ("LowBit", "ProductCodes", "FrequencyBits", "LearnedMask", "LearnedWidths")  # served in their bits
    floats = [f"bags.{e.name}" for e in FEW if e.name not in coded]
    dtype = {name: ("int8", "int4", "float16")[i % 3] for i, name in enumerate(floats)}
    report = embcomp.export(model, tmp_path / "model.pt2", (torch.arange(5), torch.tensor([0, 2, 2])), dtype=dtype)
    assert report.needs == ("torch",)
    calls = [
        (torch.randint(N, (n,)), torch.tensor(offsets)) for n, offsets in ((9, [0, 1, 1, 5]), (1, [0]), (0, [0, 0]))
    ]
    torch.save(calls, tmp_path / "calls.pt")
    result = subprocess.run(
        [sys.executable, "-c", SERVE], cwd=tmp_path, capture_output=True, text=True, check=True, env={"PYTHONPATH": ""}
    )
    assert "embedding" in result.stdout  # the wrong id was refused, with the name of its table
    eager = swap(model, dtype).model  # judged in test_swap.py  # pyright: ignore
    for call, answer in zip(calls, torch.load(tmp_path / "answers.pt"), strict=True):
        expected = eager(*call)
        assert list(answer) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(answer[name], value, msg=lambda text, name=name: f"{name}: {text}")


def test_the_report_counts_what_is_in_the_file(tmp_path: Path) -> None:
    model = nn.ModuleDict({"user": nn.Embedding(3000, 16), "item": nn.Embedding(1000, 16), "tag": nn.Embedding(40, 8)})
    shared = embcomp.UnifiedEmbedding(rows=512, chunk_dim=16)
    embcomp.compress_(model, {"tag": embcomp.Full(), "*": shared})
    wide = nn.Linear(40, 3)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables, self.head = model, wide

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.head(torch.cat([self.tables[name](batch[name]) for name in model], 1))

    ids = torch.arange(4)
    report = embcomp.export(
        Model(), tmp_path / "m.pt2", ({"user": ids, "item": ids, "tag": ids},), dtype={"*.tag": "float16", "*": "int4"}
    )
    keys = 2 * 8
    assert [t.name for t in report.tables] == ["tables.user", "tables.item", "tables.tag"]
    assert [t.dtypes for t in report.tables] == [("int4",), ("int4",), ("float16",)]
    assert report.bytes_full == 4 * (4000 * 16 + 40 * 8)
    assert report.bytes_trained == 4 * (512 * 16 + 40 * 8) + keys
    assert report.bytes_exported == 10 * 512 + 2 * 40 * 8 + keys
    assert report.tables[0].bytes_exported == 10 * 512 * 3000 // 4000 + 8
    assert report.inputs == "{user: int64 [n0], item: int64 [n0], tag: int64 [n0]}"
    assert (report.path, report.bytes_file) == (tmp_path / "m.pt2", (tmp_path / "m.pt2").stat().st_size)
    stored = report.bytes_exported + embcomp.nbytes(wide)
    program = torch.export.load(report.path)
    held = [*program.state_dict.values(), *(c for c in program.constants.values() if isinstance(c, Tensor))]
    assert sum(tensor.nbytes for tensor in {t.data_ptr(): t for t in held}.values()) == stored
    ((inputs,), _) = program.example_inputs  # of the sizes of the example, with nothing of it inside
    assert {name: value.tolist() for name, value in inputs.items()} == dict.fromkeys(("user", "item", "tag"), [0] * 4)
    lines = str(report).splitlines()
    assert lines[1].split()[:2] == ["tables.user", "UnifiedEmbedding"]
    assert "torch.export.load" in lines[-2]


def test_a_full_disk_is_named_and_the_file_stays(tmp_path: Path) -> None:
    """torch's own writer ends the process."""
    model, path = nn.Sequential(nn.Embedding(9, 32)), tmp_path / "model.pt2"
    size = embcomp.export(model, path, (torch.arange(3),)).bytes_file
    whole, limit = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for most in (0, 1000, size - 100, size - 10):
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, limit[1]))
            try:
                with pytest.raises(OSError, match=r"File too large: .*model\.pt2"):
                    embcomp.export(model, path, (torch.arange(3),))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    finally:
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_a_program_bears_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    embcomp.export(nn.Sequential(nn.Embedding(9, 32)), path, (torch.arange(3),))
    whole = path.read_bytes()
    assert hashlib.sha256(whole[:-64]).hexdigest().encode() == whole[-64:]
    assert serving.load(path).module()(torch.tensor([1, 2])).shape == (2, 32)
    torch.export.save(torch.export.load(path), path)  # as embcomp 0.1 wrote it
    assert serving.load(path).module()(torch.tensor([1, 2])).shape == (2, 32)
    for wrong in (whole[:-1], whole[:-100], b"", b"PK", path.read_bytes()[:-30]):
        path.write_bytes(wrong)
        with pytest.raises(Damaged, match=r"model\.pt2 is damaged"):
            serving.load(path)


def test_nothing_is_left_of_an_export_that_failed(tmp_path: Path) -> None:
    class Branching(nn.Sequential):
        def forward(self, ids: Tensor) -> Tensor:
            vectors = super().forward(ids)
            return vectors if float(vectors.sum()) > 0 else -vectors

    path, ids = tmp_path / "model.pt2", torch.arange(3)
    path.write_bytes(b"the one before")
    model = nn.Sequential(nn.Embedding(9, 4))
    with torch.no_grad():
        model[0].weight[3] = 1e6
    with pytest.raises(ValueError, match=r"table .0.: values up to 1e.06 are too large for int4"):
        embcomp.export(model, path, (ids,), dtype="int4")
    with pytest.raises(Exception) as failed:  # noqa: PT011 (torch's own kind)
        embcomp.export(Branching(nn.Embedding(9, 4)), path, (ids,))
    assert any("torch.export cannot trace" in note for note in failed.value.__notes__)
    for wrong in (None, ids):
        with pytest.raises(
            TypeError, match=r"example must be a tuple of the arguments of a call, such as \(ids,\), got"
        ):
            embcomp.export(model, path, wrong)
    with pytest.raises(TypeError, match=r"example\[0\] is a str"):
        embcomp.export(model, path, ("ids",))
    with pytest.raises(ValueError, match=r"example\[0\] has shape \[1\].*at least two"):
        embcomp.export(model, path, (ids[:1],))
    with pytest.raises(ValueError, match="there is no folder"):
        embcomp.export(model, tmp_path / "no" / "model.pt2", (ids,))
    with pytest.raises(ValueError, match=r"must end in \.pt2"):
        embcomp.export(model, tmp_path / "model.pt", (ids,))
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"]
    assert path.read_bytes() == b"the one before"


def test_a_model_that_fixes_its_batch_is_refused(tmp_path: Path) -> None:
    class Fixed(nn.Sequential):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) + torch.zeros(3, 4)

    with pytest.raises(ValueError, match=r"example\[0\] would always have to be of size 3"):
        embcomp.export(Fixed(nn.Embedding(9, 4)), tmp_path / "m.pt2", (torch.arange(3),))
