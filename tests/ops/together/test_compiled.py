"""Each kernel compiles to code of a GPU, which needs none: what Triton's interpreter would let pass is refused here."""

import os
import subprocess
import sys

from tests.ops.together.triton_form import needs_triton

PROGRAM = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from embcomp.ops.together import kernels

TYPES = {"ids": "*i32", "inside": "*i32", "weights": "*fp32"}
TYPES |= dict.fromkeys(["parts", "steps", "size", "all_rows"], "i32")
CONSTANTS = {"LOOKUPS": 2, "BLOCK": 256, "PIECES": 3, "STEPS": 2, "COLUMNS": 4, "CODE_BYTES": 1, "SUPPORT_BYTES": 2}
for name in kernels.__all__:
    kernel = getattr(kernels, name)
    types = {arg: "constexpr" if arg in CONSTANTS else TYPES.get(arg, "*i64") for arg in kernel.arg_names}
    fixed = {(place,): CONSTANTS[arg] for place, arg in enumerate(kernel.arg_names) if arg in CONSTANTS}
    made = triton.compile(ASTSource(kernel, types, fixed), target=GPUTarget("cuda", 90, 32))
    print(name, len(made.asm["cubin"]))
"""


@needs_triton
def test_every_kernel_compiles_for_a_gpu(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    sizes = dict(line.split() for line in done.stdout.splitlines())
    assert "hashed_kernel" in sizes
    assert all(int(size) > 0 for size in sizes.values())
