"""What the documentation shows runs: code of the README and the docs pages, examples in docstrings, the site itself."""

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from unittest import SkipTest

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import embcomp
import recsys_models

ROOT = Path(__file__).parent.parent
PAGES = sorted(str(page.relative_to(ROOT)) for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
MODULES = sorted(
    module.name
    for package in (embcomp, recsys_models)
    for module in [*pkgutil.walk_packages(package.__path__, f"{package.__name__}."), package.__spec__]
    if ".kernels" not in module.name  # they need Triton, and have no examples
)


@pytest.mark.parametrize("page", PAGES)
def test_code_of_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The python blocks of a page, in order, share one namespace: what a reader who pastes them all gets."""
    monkeypatch.chdir(tmp_path)
    parser = Sybil([PythonCodeBlockParser(), SkipParser()], path=str(ROOT))
    for example in parser.parse(ROOT / page).examples():
        with suppress(SkipTest):  # a block that needs what is not there; the others of the page run
            example.evaluate()


def test_the_readme_shows_what_its_code_prints(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text()
    code = next(part for part in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "embcomp.choose(" in part)
    shown = next(part for part in re.findall(r"```text\n(.*?)```", text, re.DOTALL) if part.startswith("table "))
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == shown.strip()


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert failed == 0


@pytest.mark.parametrize("name", sorted(name for name in embcomp.__all__ if callable(getattr(embcomp, name))))
def test_public_object_shows_an_example(name: str) -> None:
    assert ">>> " in (getattr(embcomp, name).__doc__ or "")


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    # As `make docs`. Not --quiet: what is not logged is not counted, and --strict then lets it pass.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert result.returncode == 0, result.stderr
    shown = [page.read_text() for page in tmp_path.glob("**/*.html")]
    assert len(shown) > 30
    # A prompt that became a quote in a quote is an example in a docstring that griffe did not recognise.
    assert not [page for page in shown if re.search(r"<blockquote>\s*<blockquote>", page)]
    assert sum(page.count('<span class="gp">&gt;&gt;&gt; </span>') for page in shown) > 300
