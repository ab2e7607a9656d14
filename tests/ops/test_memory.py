"""Compiled functions that cannot have the memory they need: an error, and a process that goes on."""

import json
import os
import re
import subprocess
import sys

import pytest

from embcomp.ops import native

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or native.library() is None, reason="needs Linux and the compiled functions"
)

# Two rows of floats; a number for each vertex; the queries in whole bytes; all buckets once more.
ASKED = {"pool_tables": 32_000_000, "local_moves": 8_000_000, "code_search": 3_200_000, "bucket_query": 2**24}

# Each call is tried where the process can have no more address space than it holds; then again, with all of it.
SCRIPT = """
import json, resource
import numpy as np
import torch
from embcomp.graph.moves import Graph, local_moves
from embcomp.ops import native
from embcomp.ops.buckets import Histories, collide, query, sign_signatures
from embcomp.ops.code_search import code_search, code_search_reference
from embcomp.ops.optimizers import FusedOptimizerSettings
from embcomp.ops.packed_columns import PackedColumns
from embcomp.ops.requests import Bags
from embcomp.ops.tables import pool_bags
from embcomp.ops.updates import gradient_square, update_tables

N = 1_000_000
called, most = native.within_memory, resource.getrlimit(resource.RLIMIT_AS)[1]
full = True

def call(function, *arguments):
    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held if full else most, most))
    try:
        called(function, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

native.within_memory = call

def bags(number, column=0):
    return Bags(torch.arange(number), torch.arange(number + 1), torch.full((number,), 2.0), torch.tensor([column]))

def pool_tables():
    table, out = torch.arange(4.0 * N).view(1, -1), torch.empty(1, 4 * N)
    pool_bags(table, bags(1), out)
    return torch.equal(out, 2 * table)

def square_of_gradient():
    return gradient_square((N, 1), bags(N), torch.ones(N, 1)) == 4 * N

def update(threads, number):  # more than before, for what was had then is kept
    torch.set_num_threads(threads)
    tables, grad = [torch.zeros(number, 1) for _ in range(2)], torch.ones(number, 2)
    parts = [bags(number, column) for column in range(2)]
    update_tables(tables, [{}, {}], parts, grad, FusedOptimizerSettings("sgd", 1.0))
    return all(bool((table == -2).all()) for table in tables)

def code_search_():
    torch.manual_seed(0)
    codes = PackedColumns.of(torch.randint(2, (3, 64), dtype=torch.uint8), ((64, 1),))
    queries = torch.randn(50_000, 64)
    return torch.equal(code_search(codes, None, queries, 1).rows, code_search_reference(codes, None, queries, 1).rows)

def local_moves_():
    none, alone = np.zeros(N), np.arange(N, dtype=np.int32)
    graph = Graph(np.zeros(N + 1, dtype=np.int64), np.zeros(0, dtype=np.int32), None, none, none)
    return np.array_equal(local_moves(graph, 1.0, 1e-9, alone, 2, alone), alone)

def sign_words():
    return int(sign_signatures(torch.ones(1, N // 2), torch.ones(N // 2, 20), 1)[0, 0]) == 2**20 - 1

def bucket_query():
    sums = torch.ones(1, 1, 2**18, 16)
    out = query(torch.ones(1, 1, 16), torch.zeros(1, 1, 1, dtype=torch.int64), None, sums, 18, unit=True)
    return torch.allclose(out, torch.full_like(out, 0.25))

CASES = {
    "pool_tables": pool_tables, "square_of_gradient": square_of_gradient, "update_tables": lambda: update(1, 3 * N),
    "update_tables, two threads": lambda: update(2, 6 * N), "code_search": code_search_, "local_moves": local_moves_,
    "sign_words": sign_words, "bucket_query": bucket_query,
}
said = {}
for name, case in CASES.items():
    full = True
    try:
        case()
        said[name] = "no error"
    except MemoryError as error:
        said[name] = str(error)
    full = False
    assert case(), name
print(json.dumps(said))
"""


def test_memory_that_cannot_be_had_is_an_error_with_its_size():
    freed = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}  # goes back to the system at once
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env={**os.environ, **freed})
    assert run.returncode == 0, run.stderr[-2000:]
    for name, said in json.loads(run.stdout).items():
        found = re.match(r"(\w+): there is no memory for ([\d,]+) bytes; give it less at once, or free memory", said)
        assert found, (name, said)
        assert found[1] == name.split(",")[0]
        if name in ASKED:
            assert int(found[2].replace(",", "")) == ASKED[name]
