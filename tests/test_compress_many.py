"""`compress_` of many tables takes as much work for each as for few."""

import sys
import warnings
from types import FrameType
from typing import Any, Literal

import pytest
from torch import nn

import embcomp
from embcomp.notes import CompressionWarning

METHODS = [embcomp.HashingTrick(rows=5), embcomp.UnifiedEmbedding(rows=50, chunk_dim=2)]


def instructions(tables: int, method: embcomp.Method, init: Literal["fresh", "warm"]) -> int:
    """The number of bytecode instructions of the library that compress a model of so many tables."""
    model = nn.ModuleDict({f"t{i}": nn.Embedding(20, 4) for i in range(tables)})
    number = 0

    def count(frame: FrameType, event: str, arg: Any):
        nonlocal number
        number += event == "opcode"
        return count

    def enter(frame: FrameType, event: str, arg: Any):
        if not frame.f_globals.get("__name__", "").startswith("embcomp."):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return count

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CompressionWarning)  # of so small tables
            embcomp.compress_(model, method, init=init)
    finally:
        sys.settrace(before)
    return number


@pytest.mark.parametrize("init", ["fresh", "warm"])
@pytest.mark.parametrize(
    "method", [embcomp.HashingTrick(rows=5), embcomp.UnifiedEmbedding(rows=50, chunk_dim=2)], ids=str
)
def test_twice_the_tables_take_twice_the_instructions(method: embcomp.Method, init: Literal["fresh", "warm"]) -> None:
    few, more, many = (instructions(tables, method, init) for tables in (10, 20, 40))
    assert (many - more) / (more - few) < 2.02
