"""The tests of compiled code on a build with the address and undefined-behavior sanitizers of GCC: `make sanitize`.

Any read or write beside an array, and any undefined arithmetic, then ends the run with a report of the place. Four
deliberate faults come first: a build that does not report them would not report others.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
# `make test` runs these: every function of compiled code, what torchrec and SDIM hand to them, and a fuzzer.
SHORT = [
    "tests/ops", "tests/fuzz/test_ops.py", "tests/sdim/test_formula.py", "tests/torchrec/test_checks.py",
    "tests/torchrec/fused/test_engines.py",
]  # fmt: skip
TESTS = [
    *SHORT, "tests/sdim/test_sdim.py", "tests/torchrec/fused/test_fused.py", "tests/torchrec/test_fuse.py",
    "tests/torchrec/collection/test_collections.py", "tests/torchrec/collection/test_state.py",
    "tests/graph/test_partition.py", "tests/graph/test_minhash.py", "tests/serving/test_low_bit.py",
    "tests/fuzz/test_collections.py", "tests/fuzz/test_drop_ins.py", "tests/fuzz/test_sdim.py",
]  # fmt: skip
# The forms in torch, FBGEMM and Triton are not ours to check; test_native.py makes builds of its own, test_sinkhorn.py
# and exported graphs none. In test_memory.py the sanitizers themselves would lack memory.
LEFT_OUT = [
    "-k", "not [torch- and not [fbgemm-",
    "--deselect", "tests/ops/test_native.py", "--deselect", "tests/ops/test_sinkhorn.py",
    "--deselect", "tests/ops/test_search.py::test_exported_graphs_have_no_searchsorted",
    "--ignore", "tests/ops/together",
    "--ignore", "tests/ops/test_memory.py",
]  # fmt: skip
_FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O0 -g1"

# Calls past the checks of Python, and what must be said of them. Three words hold 12 entries of 8 bits.
FAULTS = {
    "read beside": ("lib.unpack(words, 8, ids, 40, 1, 9, out(40))", "heap-buffer-overflow"),
    "write beside": ("lib.unpack(words, 8, ids, 4, 1, 9, out(2))", "heap-buffer-overflow"),
    "no array": ("lib.unpack(words, 8, None, 4, 1, 9, out(4))", "null pointer"),
    "undefined shift": ("lib.unpack(words, 64, ids, 4, 1, 9, out(4))", "shift exponent 64"),
}
_FAULT = """
import ctypes, sys
lib, size = ctypes.CDLL(sys.argv[1]), ctypes.c_size_t
out = lambda n: (ctypes.c_int64 * n)()
lib.unpack.argtypes = [ctypes.c_void_p, size, ctypes.c_void_p, size, size, ctypes.c_int64, ctypes.c_void_p]
words, ids = (ctypes.c_uint32 * 64)(), (ctypes.c_int64 * 4)()
"""


def environment() -> dict[str, str]:
    """What a process needs to build the sanitized library and to load it.

    Raises:
        RuntimeError: no compiler here, or one without the library of the address sanitizer.
    """
    compiler = os.environ.get("CXX") or next((name for name in ("c++", "g++") if shutil.which(name)), None)
    if compiler is None:
        raise RuntimeError("needs a C++ compiler (Debian: apt-get install g++)")
    libraries = []
    # The C++ library goes with it, or the sanitizer does not find what throws (torch loads it later).
    for name in ("libasan.so", "libstdc++.so"):
        asked = [*shlex.split(compiler), f"-print-file-name={name}"]
        libraries.append(subprocess.run(asked, capture_output=True, text=True).stdout.strip())
        if not os.path.isabs(libraries[-1]):
            raise RuntimeError(f"needs {name}, which {compiler} lacks (Debian: it comes with g++)")
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {
        **ours,
        "CXX": compiler,
        "EMBCOMP_CXXFLAGS": _FLAGS,
        "LD_PRELOAD": " ".join(libraries),
        # torch and Python keep what they have until they end, and tests ask for more memory than there is.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # so that arrays do not share blocks
        "OMP_NUM_THREADS": "1",
    }


def build(variables: dict[str, str]) -> str:
    """The path of the sanitized library."""
    alone = {name: value for name, value in variables.items() if name != "LD_PRELOAD"}  # not into the compiler
    compile_it = [sys.executable, "-c", "from embcomp.ops import native; print(native.build())"]
    return subprocess.run(compile_it, cwd=ROOT, env=alone, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def reported(library: str, variables: dict[str, str]) -> list[str]:
    """The names of the deliberate faults that end a process with their report."""
    seen = []
    for name, (call, words) in FAULTS.items():
        command = [sys.executable, "-S", "-c", _FAULT + call, library]
        found = subprocess.run(command, env=variables, capture_output=True, text=True)
        if found.returncode and words in found.stderr:
            seen.append(name)
    return seen


def main(arguments: Sequence[str] | None = None) -> int:
    """All tests of compiled code; those that the command line names; or the short list."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.sanitizers", description=main.__doc__)
    parser.add_argument("tests", nargs="*", help="these alone, instead of all that read compiled code")
    parser.add_argument("--short", action="store_true", help="what `make test` has time for")
    options = parser.parse_args(arguments)
    try:
        variables = environment()
    except RuntimeError as error:
        print(f"not run: {error}")
        return 0
    seen = reported(build(variables), variables)
    print(f"{len(seen)} of {len(FAULTS)} deliberate faults are reported", flush=True)
    if len(seen) < len(FAULTS):
        print(f"not reported: {sorted(set(FAULTS) - set(seen))}")
        return 1
    if options.short:
        variables["EMBCOMP_FUZZ_SECONDS"] = "1"  # the inputs of one seed
        variables["EMBCOMP_EXAMPLES"] = "10"  # of a property; all of them are tried on the usual build
    tests = options.tests or (SHORT if options.short else TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *LEFT_OUT, *tests]
    return subprocess.run(command, cwd=ROOT, env=variables).returncode


if __name__ == "__main__":
    sys.exit(main())
