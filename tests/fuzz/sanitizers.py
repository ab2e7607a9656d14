"""The tests of compiled code on a build with the address and undefined-behavior sanitizers of GCC: `make sanitize`.

Any read or write beside an array, and any undefined arithmetic, then ends the run with a report of the place.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ["tests/ops", "tests/sdim/test_formula.py", "tests/sdim/test_sdim.py", "tests/torchrec/test_fused.py",
         "tests/torchrec/test_engines.py", "tests/torchrec/test_collections.py", "tests/graph/test_partition.py",
         "tests/fuzz/test_collections.py", "tests/fuzz/test_drop_ins.py", "tests/fuzz/test_sdim.py",
         "tests/fuzz/test_ops.py"]  # fmt: skip
_FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g"


def environment() -> dict[str, str]:
    """What a process needs to load the sanitized build.

    Raises:
        RuntimeError: no compiler here, or one without the library of the address sanitizer.
    """
    compiler = os.environ.get("CXX") or next((name for name in ("c++", "g++") if shutil.which(name)), None)
    if compiler is None:
        raise RuntimeError("needs a C++ compiler (Debian: apt-get install g++)")
    asked = [*shlex.split(compiler), "-print-file-name=libasan.so"]
    library = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(library):
        raise RuntimeError(f"needs libasan, which {compiler} lacks (Debian: it comes with g++)")
    return {
        **os.environ,
        "CXX": f"{compiler} {_FLAGS}",
        "LD_PRELOAD": library,
        # torch and Python keep what they have until they end, and tests ask for more memory than there is.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # so that arrays do not share blocks
        "OMP_NUM_THREADS": "1",
    }


def main() -> int:
    """All tests of compiled code; or those that the command line names."""
    try:
        variables = environment()
        compile_it = [sys.executable, "-c", "from embcomp.ops import native; native.build()"]
        alone = {name: value for name, value in variables.items() if name != "LD_PRELOAD"}  # not into the compiler
        subprocess.run(compile_it, cwd=ROOT, env=alone, check=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(sys.argv[1:] or TESTS)]
        return subprocess.run(command, cwd=ROOT, env=variables).returncode
    except RuntimeError as error:
        print(f"not run: {error}")
        return 0


if __name__ == "__main__":
    sys.exit(main())
