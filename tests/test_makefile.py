"""`make` sets `.venv` up once, begins a failed set-up again and says what it lacks.

A script plays Python: it makes a `.venv` whose interpreter writes its arguments to a log, and
fails where they hold what the file `fail` names.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FAKE_PYTHON = """#!/bin/sh
case "$*" in
  *--version) echo "Python 3.12.0" ;;
  *venv*) mkdir -p .venv/bin
    printf '#!/bin/sh\\necho "$*" | tee -a log\\n! echo "$*" | grep -qFf fail 2>/dev/null\\n' > .venv/bin/python
    chmod +x .venv/bin/python ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    (tmp_path / "python").write_text(FAKE_PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The flags of the `make test` around this run would otherwise reach the run under test.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"
    }
    command = ["make", "PYTHON=./python", "REQUIREMENTS=cpu", *arguments]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)


def logged(checkout: Path) -> list[str]:
    log = checkout / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def test_second_call_sets_up_nothing(checkout: Path) -> None:
    assert make(checkout, "demo").returncode == 0
    *set_up, demo = logged(checkout)
    assert demo == "-m experiments demo"
    assert any("--no-deps --requirement requirements/cpu.txt" in line for line in set_up)
    assert make(checkout, "demo").returncode == 0
    assert logged(checkout) == ["-m experiments demo"]


def test_changed_list_sets_up_again(checkout: Path) -> None:
    make(checkout, "demo")
    logged(checkout)
    os.utime(checkout / "requirements" / "cpu.txt", (2**32, 2**32))
    make(checkout, "demo")
    assert any("pip" in line for line in logged(checkout))


@pytest.mark.parametrize("what", ["pip install", "torch uv"])
def test_failed_set_up_is_begun_again(checkout: Path, what: str) -> None:
    (checkout / "fail").write_text(what)
    assert make(checkout, "demo").returncode == 2
    assert not any("experiments" in line for line in logged(checkout))
    (checkout / "fail").unlink()
    assert make(checkout, "demo").returncode == 0
    assert any("pip" in line for line in logged(checkout))


def test_cuda_list_is_used_on_request(checkout: Path) -> None:
    assert make(checkout, "REQUIREMENTS=cuda", "demo").returncode == 0
    assert any("--requirement requirements/cuda.txt" in line for line in logged(checkout))


def test_no_suitable_python_is_said(checkout: Path) -> None:
    result = make(checkout, "PYTHON=/bin/false", "demo")
    assert result.returncode == 2
    assert "No Python 3.11-3.13" in result.stderr
    assert "make PYTHON=" in result.stderr
    assert not (checkout / ".venv").exists()


def test_where_uv_fails_pip_goes_on(checkout: Path) -> None:
    (checkout / "fail").write_text("uv pip")
    assert make(checkout, "demo").returncode == 0
    *_, uv, pip, demo = [line.split() for line in logged(checkout)]
    assert (uv[1], pip[1], demo[1]) == ("uv", "pip", "experiments")
    assert set(pip) - set(uv) == {"--no-compile"}  # the same packages


def test_style_comes_first_then_types_and_tests(checkout: Path) -> None:
    assert make(checkout, "test").returncode == 0
    first, second, *both = [line.split()[1] for line in logged(checkout) if "pip" not in line]
    assert (first, second, sorted(both)) == ("ruff", "ruff", ["pyright", "pytest"])


@pytest.mark.parametrize("tool", ["ruff check", "ruff format", "pyright", "pytest"])
def test_each_check_can_fail_the_tests(checkout: Path, tool: str) -> None:
    (checkout / "fail").write_text(f"-m {tool}")
    result = make(checkout, "test")
    assert result.returncode == 2
    assert f"-m {tool}" in result.stdout
    assert any("pytest" in line for line in logged(checkout)) == (tool in ("pyright", "pytest"))


def test_a_link_is_not_emptied(checkout: Path) -> None:
    other = checkout / "other"
    (other / "bin").mkdir(parents=True)
    (other / "bin" / "python").write_text("kept")
    (checkout / ".venv").symlink_to(other)
    run = make(checkout, "demo")
    assert run.returncode == 2
    assert ".venv is a link to" in run.stderr
    assert "rm .venv" in run.stderr
    assert (other / "bin" / "python").read_text() == "kept"
