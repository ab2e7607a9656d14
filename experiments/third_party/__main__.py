"""The command that swaps the tables of other libraries' models, trains before and after, and writes the outcomes.

    python -m experiments.third_party                    what is installed, into experiments/results/third-party
    python -m experiments.third_party --only recbole     one library
    python -m experiments.third_party --model "recbole/SASRec (sequential)"     one model, printed alone

It installs nothing. The packages and versions to install are listed in requirements/third-party.txt; use an environment
that is deleted afterwards. Each model runs in a process of its own. Models in the file of results that were tried with
the same versions are not tried again without --again, unless they gave no answer.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata
from multiprocessing.connection import Connection
from typing import Any

import torch

import embcomp
from experiments.files import write_json
from experiments.runs.results import RESULTS
from experiments.third_party.counts import counts
from experiments.third_party.libraries import PACKAGES
from experiments.third_party.trial import METHODS, Build, try_exact, try_method

THIRD_PARTY = RESULTS / "third-party"
REQUIREMENTS = "requirements/third-party.txt"
LIMIT = 300.0
"""The most seconds for one model with all methods."""
_NO_ANSWER = "no answer in"  # perhaps the machine was busy: it is tried again the next time

Tries = dict[str, list[str]]
"""The outcome and the reason of each try, by its name."""


def _tries(build: Build) -> Tries:
    tries = {
        f"{label}, {init}": list(try_method(build, method, init))
        for label, method in METHODS.items()
        for init in ("fresh", "warm")
    }
    tries["a row for each id, warm: the loss stays"] = list(try_exact(build))
    return tries


def _child(build: Build, answers: Connection) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    answers.send(_tries(build))


def _apart(build: Build) -> Tries:
    """Return the tries of one model, run in a process that may crash."""
    context = multiprocessing.get_context("fork")
    answers, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(build, theirs))
    process.start()
    theirs.close()
    try:
        if answers.poll(LIMIT):
            return answers.recv()
        return {"all": ["wrong", f"{_NO_ANSWER} {LIMIT:.0f} s"]}
    except EOFError:
        process.join()
        return {"all": ["wrong", f"the process ended with {process.exitcode}"]}
    finally:
        process.kill()
        process.join()


def _short(tries: Tries) -> dict[str, Any]:
    """Return `trained` and its number if all tries are; else outcome -> reason -> the tries."""
    grouped: dict[str, Any] = {}
    for name, (outcome, reason) in tries.items():
        grouped.setdefault(outcome, {}).setdefault(reason[:400], []).append(name)
    counted = {"trained", "no table"}
    return {
        outcome: sum(map(len, reasons.values())) if outcome in counted else reasons
        for outcome, reasons in grouped.items()
    }


def _library(name: str, again: bool, matching: str) -> list[dict[str, Any]] | None:
    """Return a row for each model of one library, also those in its file; None if it is not installed."""
    package = PACKAGES[name]
    file = THIRD_PARTY / f"{name}.json"
    try:
        builds = importlib.import_module(f"experiments.third_party.libraries.{name}").models()
        versions = {package: metadata.version(package), "embcomp": embcomp.__version__, "torch": torch.__version__}
    except (ImportError, metadata.PackageNotFoundError) as error:
        print(f"{package} is not installed ({error})")
        return None
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() and not again else []
    rows = [row for row in rows if row["versions"] == versions and _NO_ANSWER not in str(row["outcomes"])]
    done = {row["model"] for row in rows}
    for model, build in builds.items():
        if model not in done and matching in model:
            outcomes = _short(_apart(build))
            rows.append({"model": model, "versions": versions, "outcomes": outcomes})
            print(f"{package} {model}: {json.dumps(outcomes)[:200]}", flush=True)
            write_json(file, rows)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.third_party", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--only", choices=list(PACKAGES), action="append", help="this library (may be repeated)")
    parser.add_argument("--matching", default="", metavar="TEXT", help="models whose name contains this text")
    parser.add_argument("--again", action="store_true", help="also models that are already in the results")
    parser.add_argument("--model", metavar="LIBRARY/NAME", help="try one model here, print all, write nothing")
    options = parser.parse_args(arguments)
    if options.model:
        library, _, name = options.model.partition("/")
        build = importlib.import_module(f"experiments.third_party.libraries.{library}").models()[name]
        warnings.simplefilter("ignore")
        for label, (outcome, reason) in _tries(build).items():
            print(f"{label}: {outcome} {reason}")
        return 0
    missing = False
    for name in options.only or PACKAGES:
        rows = _library(name, options.again, options.matching)
        missing |= rows is None
        if rows:
            models, tries = counts(rows)
            print(f"{name}: {len(rows)} models {models}, {sum(tries.values())} tries {tries}")
    if missing:
        print(
            "To try what is missing, in an environment of its own:\n"
            "  python -m venv out/third-party\n"
            f"  out/third-party/bin/python -m pip install --no-deps -r requirements/cpu.txt -r {REQUIREMENTS}\n"
            "  out/third-party/bin/python -m experiments.third_party"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
