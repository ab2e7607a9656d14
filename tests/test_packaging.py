"""The wheel, installed beside torch and nothing else, works; the pinned lists hold what the project declares."""

import ast
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.tags import sys_tags
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

import embcomp
import hatch_build
from hatch_build import CustomMetadataHook, compile_native, compiler_for, machine_of, platform_tag

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def applies(requirement: Requirement, extras: Iterable[str] = ()) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def with_requirements(
    name: str, extras: Iterable[str] = (), found: dict[str, Distribution] | None = None
) -> dict[str, Distribution]:
    """The installed distribution `name[extras]` and all that it requires, by name and extras."""
    found, key = {} if found is None else found, f"{canonicalize_name(name)}{sorted(extras)}"
    if key not in found:
        found[key] = distribution(name)
        for line in distribution(name).requires or []:
            if applies(requirement := Requirement(line), extras):
                with_requirements(requirement.name, requirement.extras, found)
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT],
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that holds torch, torch's requirements and the wheel.

    torch is linked from the running environment, a matter of seconds and no download. pip then installs the wheel
    without an index, so it fails should the wheel require anything beyond torch.
    """
    environment = tmp_path_factory.mktemp("clean")
    venv.create(environment, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    for dist in with_requirements("torch").values():
        for top in {file.parts[0] for file in dist.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(dist.locate_file(top))))
    python = environment / "bin" / "python"
    # Wheels in a folder that pip is configured to look into would be written through the links.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    command = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", wheel]
    subprocess.run(command, check=True, env={**alone, "PIP_CONFIG_FILE": os.devnull})
    return python


def run_clean(python: Path, code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # torch itself warns at import where numpy is missing; embcomp, where there is no compiler.
    quiet = "import warnings; warnings.filterwarnings('ignore', 'Failed to initialize NumPy|embcomp: no C.. compiler')"
    command = [python, "-I", "-W", "error", "-c", f"{quiet}\n{code}"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_wheel_holds_its_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} == {
        "embcomp",
        "embcomp_data",
        "embcomp_experiments",
        "recsys_models",
        f"embcomp_recsys-{embcomp.__version__}.dist-info",
    }
    files = [path for package in ("embcomp", "recsys_models") for path in (ROOT / package).rglob("*") if path.suffix]
    sources = {str(path.relative_to(ROOT)) for path in files if path.suffix in {".py", ".cpp", ".h", ".typed"}}
    assert {"embcomp/py.typed", "recsys_models/py.typed"} <= sources <= names
    configs = {path.name for path in (ROOT / "experiments" / "configs").glob("*.toml")}
    assert {name.rsplit("/", 1)[1] for name in names if name.startswith("embcomp_experiments/configs/")} == configs
    assert not [name for name in names if "/results/" in name]


def _fits_here(wheel: Path) -> bool:
    """Whether pip would install the wheel here, by its name alone."""
    return bool(parse_wheel_filename(wheel.name)[3] & set(sys_tags()))


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_a_wheel_of_the_platform_compiles_nothing(tmp_path: Path) -> None:
    """Its functions are loaded, and are those of plain torch; without a compiler, and with an empty cache."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
        env={**os.environ, "EMBCOMP_WHEEL_NATIVE": "1", "EMBCOMP_CXXFLAGS": "-O0"},  # five seconds instead of fifteen
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert _fits_here(wheel)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        assert "Root-Is-Purelib: false" in archive.read(
            next(name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        ).decode().replace("\r", "")
    code = (
        "import torch\n"
        "from embcomp.ops import native\n"
        "from embcomp.ops.hashing import hash_rows, hash_rows_reference\n"
        "if native.shipped() is None: raise SystemExit('another processor')\n"
        "assert native.library() is not None\n"
        "ids, keys = torch.arange(9), torch.tensor([3, -4])\n"
        "assert torch.equal(hash_rows(ids, keys, 5), hash_rows_reference(ids, keys, 5))\n"
        "print('loaded')\n"
    )
    variables = {
        "PYTHONPATH": str(tmp_path / "site"), "EMBCOMP_CACHE": str(tmp_path / "cache"), "CXX": "/no/compiler",
        "PATH": "", "HOME": str(tmp_path),
    }  # fmt: skip
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", code]
    ended = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    if "another processor" in ended.stderr:
        pytest.skip("this processor lacks what the wheel needs")
    assert ended.stdout == "loaded\n", ended.stderr
    assert not (tmp_path / "cache").exists()


def _library(machine: int, *versions: str) -> bytes:
    """The beginning of an ELF file for a machine, and the names of symbol versions that it needs."""
    return b"\x7fELF".ljust(18, b"\0") + machine.to_bytes(2, "little") + "\0".join(["", *versions, ""]).encode()


@pytest.mark.parametrize(
    ("library", "tag"),
    [
        (_library(62, "GLIBC_2.2.5", "GLIBC_2.14"), "manylinux_2_17_x86_64"),
        (_library(62, "GLIBC_2.34", "GLIBC_2.9"), "manylinux_2_34_x86_64"),
        (_library(183, "GLIBC_2.17"), "manylinux_2_17_aarch64"),
    ],
)
def test_a_wheel_says_which_glibc_its_functions_need(library: bytes, tag: str) -> None:
    assert platform_tag(library) == tag


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_a_compiler_for_another_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = platform.machine()
    other = "aarch64" if here == "x86_64" else "x86_64"
    for name in ("flags.txt", "one.cpp"):
        (tmp_path / name).write_text("" if name == "one.cpp" else "-shared -fPIC")
    monkeypatch.setenv("EMBCOMP_WHEEL_MACHINE", other)
    monkeypatch.setenv("CXX", next(filter(shutil.which, ("c++", "g++", "clang++"))))  # not Zig
    monkeypatch.setattr(hatch_build, "_MARCH", {other: []})
    with pytest.raises(RuntimeError, match=f"compiles for {here}, not for {other}: set CXX"):
        compile_native(tmp_path, tmp_path / "made.so")
    monkeypatch.setenv("EMBCOMP_WHEEL_MACHINE", "riscv64")
    with pytest.raises(RuntimeError, match="no wheel with compiled functions is built for riscv64"):
        compile_native(tmp_path, tmp_path / "made.so")


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="no Zig: pip install ziglang")
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_zig_builds_a_wheel_for_either_machine(tmp_path: Path, machine: str) -> None:
    """Whose functions need symbols of an old glibc and of nothing else."""
    variables = {**os.environ, "EMBCOMP_WHEEL_NATIVE": "1", "EMBCOMP_WHEEL_MACHINE": machine, "EMBCOMP_CXXFLAGS": "-O0"}
    variables.pop("CXX", None)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT]
    subprocess.run(command, check=True, capture_output=True, env=variables)
    (wheel,) = tmp_path.glob("*.whl")
    (tag,) = parse_wheel_filename(wheel.name)[3]
    kind, major, minor, *rest = tag.platform.split("_", 3)
    assert (kind, major, rest) == ("manylinux", "2", [machine])
    assert 17 <= int(minor) <= 28
    with zipfile.ZipFile(wheel) as archive:
        library = tmp_path / archive.extract("embcomp/native/compiled.so", tmp_path)
    assert machine_of(library.read_bytes()) == machine
    if shutil.which("readelf"):
        said = subprocess.run(
            ["readelf", "-W", "-d", "--dyn-syms", library], check=True, capture_output=True, text=True
        )
        needed = set(re.findall(r"\(NEEDED\).*\[(.*?)\.so", said.stdout))
        assert needed <= {"libc", "libm", "libpthread", "libdl", "ld-linux-x86-64", "ld-linux-aarch64"}
        missing = re.findall(r" UND (\S+)", said.stdout)
        assert missing
        assert [name for name in missing if "@GLIBC_" not in name] == []


def test_zig_is_taken_where_it_is_installed_and_no_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "ziglang")
    monkeypatch.delenv("CXX", raising=False)
    compiler, flags = compiler_for("aarch64")
    assert compiler == [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu.2.28"]
    assert flags == []
    monkeypatch.setenv("CXX", "ccache g++")
    assert compiler_for("x86_64")[0] == ["ccache", "g++"]
    monkeypatch.delenv("CXX")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert compiler_for("x86_64")[0] == ["c++"]


def test_the_runner_in_the_wheel_imports_nothing_under_its_names_in_the_checkout(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sources = {name: archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")}
    imported = set()
    for name, source in sources.items():
        for node in ast.walk(ast.parse(source, name)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported |= {module.split(".")[0] for module in modules}
    assert {"embcomp_data", "embcomp_experiments"} <= imported
    assert not {"data", "experiments"} & imported
    named = re.compile(r"[\"'](?:data|experiments)(?:\.\w+)*\.\w+[\"']")
    modules = {
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".") for path in ROOT.glob("experiments/**/*.py")
    }
    left = {text.strip("\"'") for name in sources for text in named.findall(sources[name])}
    assert not left & modules


def test_own_methods_are_trained_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """Beside what the runner needs: a folder of one's own, which may hold a package called `data`."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("raise ImportError('of the user')")
    (tmp_path / "mine.py").write_text(
        "import embcomp\n"
        "from embcomp_data.registry import DATASETS\n"
        "from embcomp_experiments.plugins import add_model\n"
        "from recsys_models.dlrm import DLRM\n"
        "class MyHash(embcomp.HashingTrick): ...\n"
        "class MyModel(DLRM): ...\n"
        "add_model(MyModel)\n"
        "assert 'synthetic' in DATASETS\n"
    )
    (tmp_path / "mine.toml").write_text(
        "experiment = 'mine'\nseeds = 0\n[data]\nname = 'synthetic'\noptions = { num_rows = 3000 }\n"
        "[model]\nname = 'MyModel'\nembedding_dim = 4\n"
        "[optimizer]\nname = 'Adam'\nlr = 1e-2\n[training]\nbatch_size = 512\nepochs = 1\n"
        "[[methods]]\nmethod = 'MyHash'\nshare = 0.1\n"
    )
    command = [sys.executable, "-m", "embcomp_experiments", "run", "mine.toml", "--import", "mine.py"]
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    variables = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    variables.pop("EMBCOMP_DATA", None)
    ended = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(list((tmp_path / "results" / "mine").glob("*MyHash*.json"))) == 1


def test_source_archive_holds_what_tests_and_experiments_read(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    parts = ("data", "docs", "embcomp", "experiments", "recsys_models", "requirements", "tests")
    files = [path for part in parts for path in (ROOT / part).rglob("*") if path.is_file()]
    wanted = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    assert wanted <= names
    assert {"pyproject.toml", "hatch_build.py", "Makefile", "mkdocs.yml", "LICENSE", "README.md"} <= names


def test_the_page_on_an_index_has_no_link_that_leads_nowhere(wheel: Path) -> None:
    """An index shows the README without the checkout around it."""
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"embcomp_recsys-{embcomp.__version__}.dist-info/METADATA").decode()
    fields, page = text.split("\n\n", 1)
    assert "\nName: embcomp-recsys\n" in fields
    assert "report = embcomp.compress_(model" in page
    assert "[`HashingTrick`]" not in page
    assert "| `HashingTrick` |" in page
    assert re.findall(r"\]\((?!https://)[^)]*\)", page) == []


def test_whoever_publishes_says_where_the_project_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBCOMP_PROJECT_URL", "https://example.org/embcomp/")
    metadata: dict[str, Any] = {}
    CustomMetadataHook(str(ROOT), {}).update(metadata)
    assert metadata["urls"]["Changelog"] == "https://example.org/embcomp/blob/main/CHANGELOG.md"
    links = re.findall(r"\]\(https://example.org/embcomp/blob/main/([^)#]*)[^)]*\)", metadata["readme"]["text"])
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_import_needs_torch_alone(clean_python: Path, tmp_path: Path) -> None:
    code = """
import importlib.util, sys, torch
before = set(sys.modules)
import embcomp
added = {name.split(".")[0] for name in set(sys.modules) - before} - {"embcomp", *sys.stdlib_module_names}
assert not added, f"import embcomp takes long: it imports {added}"
table = embcomp.nn.CompressedEmbedding(1000, 8, embcomp.methods.HashingTrick(rows=100))
vectors = table(torch.tensor([[0, 999]]))
vectors.sum().backward()
assert vectors.shape == (1, 2, 8)
assert 0 <= embcomp.nbytes(table) - 100 * 8 * 4 < 100, embcomp.nbytes(table)
assert not {"torchrec", "fbgemm_gpu"} & set(sys.modules)
assert importlib.util.find_spec("numpy") is None, "the environment is not clean"
"""
    result = run_clean(clean_python, code, tmp_path)
    assert result.returncode == 0, result.stderr


def test_missing_extra_is_named(clean_python: Path, tmp_path: Path) -> None:
    result = run_clean(clean_python, "import embcomp.torchrec", tmp_path)
    assert result.returncode == 1
    assert "pip install 'embcomp-recsys[torchrec]'" in result.stderr


def pins(kind: str) -> dict[str, str]:
    lines = re.sub(r"#.*", "", (ROOT / "requirements" / f"{kind}.txt").read_text()).split("\n")
    requirements = [Requirement(line) for line in lines if line.strip()]
    assert all(len(r.specifier) == 1 and str(r.specifier).startswith("==") for r in requirements), (
        "every line is pinned"
    )
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in requirements}


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_pinned_list_holds_what_the_project_declares(kind: str) -> None:
    groups = PYPROJECT["dependency-groups"]
    extras = PROJECT["optional-dependencies"]
    declared = [Requirement(r) for r in PROJECT["dependencies"] + extras["torchrec"] + extras["experiments"]]
    declared += [Requirement(r) for r in groups[kind] + groups["dev"]]
    pinned = pins(kind)
    for requirement in declared:
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_the_oldest_list_holds_the_lower_bounds() -> None:
    """Of each package the highest of its bounds, with the first release that has it, such as 0.15.1 for 0.15."""
    pinned = {**pins("cpu"), **pins("oldest")}
    lowest: dict[str, Version] = {}
    for extra in ("torchrec", "graph", "planner", "semantic", "serving", "experiments"):
        for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
            for bound in requirement.specifier:
                name = canonicalize_name(requirement.name)
                lowest[name] = max(Version(bound.version), lowest.get(name, Version("0")))
    for name, bound in lowest.items():
        assert Version(pinned[name]).release[: len(bound.release)] == bound.release, name


def test_lists_differ_in_torch_and_what_is_released_with_it() -> None:
    cpu, cuda = pins("cpu"), pins("cuda")
    assert set(cpu) - set(cuda) == {"fbgemm-gpu-cpu"}
    assert "fbgemm-gpu" in set(cuda) - set(cpu)
    assert all(re.match(r"fbgemm-gpu|nvidia-|cuda-|triton", name) for name in set(cuda) - set(cpu))
    differing = {name for name in set(cpu) & set(cuda) if cpu[name] != cuda[name]}
    assert differing <= {"torch", "torchrec", "triton"}
    assert all(Version(cpu[name]) < Version(cuda[name]) for name in differing)  # GPUs have the newest set
